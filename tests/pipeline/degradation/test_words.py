"""Word errors: injected at a rate, and measured."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.degradation.distortions import (
    ErrorKinds,
    Vocabulary,
    add_word_errors,
    edit_distance,
    vocabulary_of,
    word_errors,
    words_of,
)

NEW = [f"new{number}" for number in range(40)]


def vocabulary(texts: list[str] | None = None) -> Vocabulary:
    made = vocabulary_of(texts or [" ".join(NEW)])
    assert made is not None
    return made


def text_of(words: int, seed: int = 0) -> str:
    drawn = random.Random(seed)
    return " ".join(f"old{drawn.randrange(1000)}" for _ in range(words))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.6])
def test_the_rate_is_realised_within_binomial_bounds(rate: float) -> None:
    """Words that differ from all others align one by one, but for a deletion beside an insertion."""
    pairs = [
        (text, add_word_errors(text, rate, 0, str(n), vocabulary())) for n in range(400) if (text := text_of(25, n))
    ]
    errors = word_errors(pairs)
    assert errors.words == 10_000
    # the chance that a deletion lies beside an insertion and both align as one substitution
    merged = errors.words * 2 * (rate / 3) ** 2
    deviation = np.sqrt(errors.words * rate * (1 - rate))
    assert rate * errors.words - merged - 4 * deviation <= errors.edits <= rate * errors.words + 4 * deviation


@pytest.mark.parametrize("kind", ["substitute", "delete", "insert"])
def test_each_kind_does_what_it_is_called(kind: str) -> None:
    kinds = ErrorKinds(**{name: float(name == kind) for name in ("substitute", "delete", "insert")})
    text = text_of(200)
    old, new = words_of(text), words_of(add_word_errors(text, 0.3, 1, "a", vocabulary(), kinds))
    fresh = [word for word in new if word in NEW]
    count = edit_distance(old, new)  # with as much difference in length, one is a subsequence of the other
    assert 30 <= count <= 90
    assert len(new) - len(old) == {"substitute": 0, "delete": -count, "insert": count}[kind]
    assert len(fresh) == {"substitute": count, "delete": 0, "insert": count}[kind]


def test_kinds_come_in_their_shares() -> None:
    """Three to one: a substitution keeps the number of words, a deletion takes one."""
    kinds = ErrorKinds(substitute=3, delete=1, insert=0)
    picked = Counter(kinds.pick(at) for at in np.random.default_rng(0).random(4000))
    assert picked["insert"] == 0
    assert 2850 <= picked["substitute"] <= 3150


def test_errors_depend_on_seed_and_utterance_alone() -> None:
    text = text_of(50)
    one = add_word_errors(text, 0.3, 0, "a", vocabulary())
    assert add_word_errors(text, 0.3, 0, "a", vocabulary()) == one
    assert add_word_errors(text, 0.3, 1, "a", vocabulary()) != one
    assert add_word_errors(text, 0.3, 0, "b", vocabulary()) != one


def test_a_higher_rate_holds_the_errors_of_a_lower_one() -> None:
    """With substitutions alone, positions can be compared."""
    kinds, text = ErrorKinds(1, 0, 0), text_of(300)
    old = words_of(text)
    before: dict[int, str] = {}
    for rate in (0.1, 0.2, 0.5, 1.0):
        new = words_of(add_word_errors(text, rate, 0, "a", vocabulary(), kinds))
        wrong = {place: word for place, word in enumerate(new) if word != old[place]}
        assert before.items() < wrong.items()
        before = wrong
    assert len(before) == 300


def test_rate_0_would_change_nothing_and_rate_1_spares_no_word() -> None:
    text = text_of(100)
    assert add_word_errors(text, 0.0, 0, "a", vocabulary()) == text
    assert add_word_errors(text, 1.0, 0, "a", vocabulary(), ErrorKinds(0, 1, 0)) == ""


def test_words_come_in_by_their_frequency_and_never_for_themselves() -> None:
    often = vocabulary(["yes yes yes", "no", "Yes, maybe."])
    at = (np.arange(1000) + 0.5) / 1000
    drawn = Counter(often.draw(float(share), other_than="other") for share in at)
    assert {word: count / 1000 for word, count in drawn.items()} == pytest.approx(
        {"yes": 4 / 6, "no": 1 / 6, "maybe": 1 / 6}, abs=0.002
    )
    others = Counter(often.draw(float(share), other_than="yes") for share in at)
    assert others == {"no": 500, "maybe": 500}
    assert Counter(often.draw(float(share), other_than="maybe") for share in at).keys() == {"yes", "no"}


def test_punctuation_stays_and_is_no_word() -> None:
    changed = add_word_errors('"Well," - I see ...', 1.0, 0, "a", vocabulary(), ErrorKinds(1, 0, 0))
    tokens = changed.split()
    assert tokens[0].startswith('"')
    assert tokens[0].endswith(',"')
    assert (tokens[1], tokens[4]) == ("-", "...")
    assert not {"well", "i", "see"} & set(words_of(changed))


def test_a_text_whose_words_are_all_deleted_is_empty_even_where_punctuation_stays() -> None:
    assert add_word_errors("Well - yes ...", 1.0, 0, "a", vocabulary(), ErrorKinds(0, 1, 0)) == ""
    assert add_word_errors("...", 1.0, 0, "a", vocabulary()) == "..."
    assert add_word_errors("", 1.0, 0, "a", vocabulary()) == ""


@pytest.mark.parametrize("texts", [[], ["", "..."], ["same Same SAME!"]])
def test_fewer_than_two_words_are_no_vocabulary(texts: list[str]) -> None:
    assert vocabulary_of(texts) is None


def plain_distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The definition, by recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        plain_distance(a[1:], b[1:]) + (a[0] != b[0]), plain_distance(a[1:], b) + 1, plain_distance(a, b[1:]) + 1
    )


LETTERS = st.lists(st.sampled_from("abc"), max_size=5)


@given(LETTERS, LETTERS)
def test_the_distance_is_that_of_the_definition(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == plain_distance(tuple(a), tuple(b))


SAME = {
    "apostrophe": ("I don’t", "I don't"),
    "decomposed accent": ("e\u0301te\u0301", "\xe9t\xe9"),
    "punctuation": ("«Ça va ?»", "ça va"),
}


@pytest.mark.parametrize("name", SAME)
def test_another_spelling_of_a_word_is_no_error(name: str) -> None:
    assert word_errors([SAME[name]]).edits == 0


def test_vowel_signs_are_parts_of_words() -> None:
    assert words_of("अच्छा लड़का!") == ["अच्छा", "लड़का"]
    assert word_errors([("अच्छा लड़का", "अच्छी लड़की")]).edits == 2


def test_the_word_error_rate_is_over_all_words_together() -> None:
    errors = word_errors([("one two three four", "one too three"), ("Five!", "five"), ("", "and more")])
    assert (errors.edits, errors.words, errors.rate) == (4, 5, 0.8)
    assert word_errors([("", "something")]).rate is None
