"""What a worse recogniser and a worse microphone do: word errors in transcripts, made at a given rate and measured, and
noise in clips at a given signal-to-noise ratio. Pure.

**Words.** A word is what white space separates, without the punctuation around it; a token of punctuation alone is no
word. Case, composed or decomposed accents and the form of an apostrophe make no other word. At rate r each word has an
error with probability r, independently of all others. An error

    substitutes  another word for it, between the same punctuation,
    deletes      it together with its punctuation, or
    inserts      another word behind it.

The words that come in are drawn from a vocabulary by their frequency there. What happens to a word depends on the
seed, the utterance and the word's position, not on the rate: a higher rate has all errors of a lower one and more, so
that curves over the rate are smooth.

The measure is the word error rate of speech recognition: substitutions, deletions and insertions of the cheapest
alignment, over the words of the reference, all utterances together. It may lie
a little below the rate: a word deleted and another inserted beside it align as one substitution.

**Noise.** The ratio is 10 log10(P / N) dB, where P is the clip's own power and N that of the noise, both over the
whole clip. A constant offset is no sound and counts for nothing. The noise of a clip depends on the seed and the
utterance; ratios only scale it, so that curves over the ratio are smooth. It is

    white   Gaussian: the same power at every frequency, or
    speech  Gaussian with the clip's own spectrum: its power lies where the speech is, which hides it more.

Digital silence has no ratio and stays as it is.
"""

import hashlib
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.params import NoiseKind


def generator(purpose: str, seed: int, identifier: str) -> np.random.Generator:
    """The generator of utterance `identifier`; another `purpose` or `seed` gives independent numbers."""
    key = hashlib.sha256(f"{purpose}\0{seed}\0{identifier}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))


def add_noise(clip: np.ndarray, ratio: float, seed: int, identifier: str, kind: NoiseKind = "white") -> np.ndarray:
    """`clip` (samples,) float32 with noise at `ratio` dB; itself where it holds no sound."""
    sound = clip - clip.mean(dtype=np.float64)
    noise = generator("noise", seed, identifier).standard_normal(len(clip))
    if kind == "speech":
        noise = _coloured(noise, sound)
    signal_power, noise_power = np.square(sound).mean(), np.square(noise).mean()
    if not signal_power or not noise_power:
        return clip
    scale = np.sqrt(signal_power / (noise_power * 10 ** (ratio / 10)))
    return (clip + scale * noise).astype(np.float32)


def _coloured(noise: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """White `noise` with the magnitudes of `sound` at every frequency."""
    return np.fft.irfft(np.fft.rfft(noise) * np.abs(np.fft.rfft(sound)), n=len(sound))


APOSTROPHES = str.maketrans("\u2019\u02bc\uff07", "'''")
LONGEST_WORD = 3.5  # letters, on average
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}  # no blanks between words


def words_of(text: str) -> list[str]:
    """The words of `text` in lower case, without the punctuation around them.

    >>> words_of('"Well -- I don\\'t," she said.')
    ['well', 'i', "don't", 'she', 'said']
    """
    return [_spelling(word) for token in text.split() if (word := _parts(token)[1])]


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters are of scripts that put no blanks between words, and nobody has put them there.

    >>> [is_unspaced([text]) for text in ("我不知道 es geht mir gut", "我不知道怎么办", "我 不 知道 怎么办")]
    [False, True, False]
    """
    texts = list(texts)
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    unspaced = sum(n for letter, n in letters.items() if unicodedata.name(letter, "").split(" ")[0] in UNSPACED)
    pieces = sum(len(text.split()) for text in texts)
    return 2 * unspaced > letters.total() > LONGEST_WORD * pieces


def _spelling(word: str) -> str:
    """What the same words share: typographic apostrophes and decomposed accents are another program's spelling."""
    return unicodedata.normalize("NFC", word).translate(APOSTROPHES).lower()


def _parts(token: str) -> tuple[str, str, str]:
    """Punctuation before, the word, punctuation behind; vowel signs behind its letters belong to it."""
    inside = [place for place, sign in enumerate(token) if sign == "_" or unicodedata.category(sign)[0] in "LN"]
    first, last = (inside[0], inside[-1] + 1) if inside else (len(token), len(token))
    while inside and last < len(token) and unicodedata.category(token[last])[0] == "M":
        last += 1
    return token[:first], token[first:last], token[last:]


@dataclass(frozen=True)
class Vocabulary:
    """Words in lower case, and how often each one occurs."""

    words: tuple[str, ...]  # sorted
    ends: np.ndarray  # (words,) int64: cumulative counts

    def draw(self, at: float, other_than: str) -> str:
        """The word that lies at share `at` (0 <= at < 1) of all occurrences but those of `other_than`."""
        own = bisect_left(self.words, other_than)
        known = own < len(self.words) and self.words[own] == other_than
        start = int(self.ends[own - 1]) if known and own else 0
        count = int(self.ends[own]) - start if known else 0
        position = at * (int(self.ends[-1]) - count)
        if known and position >= start:
            position += count
        return self.words[int(np.searchsorted(self.ends, position, side="right"))]


def vocabulary_of(texts: Iterable[str]) -> Vocabulary | None:
    """The words of `texts`; None where there are not two that differ, since one could not stand in for the other."""
    counts = Counter(word for text in texts for word in words_of(text))
    if len(counts) < 2:
        return None
    words = tuple(sorted(counts))
    return Vocabulary(words, np.cumsum([counts[word] for word in words]))


@dataclass(frozen=True)
class ErrorKinds:
    """How often an error is of each kind, relative to the other two."""

    substitute: float = 1.0
    delete: float = 1.0
    insert: float = 1.0

    def pick(self, at: float) -> str:
        """The kind at share `at` (0 <= at < 1)."""
        at *= self.substitute + self.delete + self.insert
        if at < self.substitute:
            return "substitute"
        return "delete" if at < self.substitute + self.delete else "insert"


def add_word_errors(
    text: str, rate: float, seed: int, identifier: str, vocabulary: Vocabulary, kinds: ErrorKinds = ErrorKinds()
) -> str:
    """`text` with errors at `rate`; "" where all of its words are deleted."""
    tokens = text.split()
    draws = generator("word errors", seed, identifier).random((len(tokens), 3))  # whether, which kind, which word
    result: list[str] = []
    for token, (chance, kind, at) in zip(tokens, draws.tolist(), strict=True):
        before, word, behind = _parts(token)
        if not word or chance >= rate:
            result.append(token)
            continue
        drawn = vocabulary.draw(at, other_than=_spelling(word))
        result += {"substitute": [before + drawn + behind], "delete": [], "insert": [token, drawn]}[kinds.pick(kind)]
    changed = " ".join(result)
    return changed if words_of(changed) or not words_of(text) else ""


@dataclass(frozen=True)
class WordErrors:
    """How far hypotheses are from their references."""

    edits: int
    words: int  # of the references

    @property
    def rate(self) -> float | None:
        """The word error rate; None where the references have no word."""
        return self.edits / self.words if self.words else None


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """The errors of all (reference, hypothesis) texts together.

    >>> word_errors([("It is so good.", "it was good"), ("No!", "no no")])
    WordErrors(edits=3, words=5)
    """
    edits = words = 0
    for reference, hypothesis in pairs:
        expected = words_of(reference)
        edits += edit_distance(expected, words_of(hypothesis))
        words += len(expected)
    return WordErrors(edits, words)


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions that turn one into the other (Levenshtein, over words)."""
    row = list(range(len(hypothesis) + 1))
    for line, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], line
        for column, found in enumerate(hypothesis, start=1):
            cheapest = min(diagonal + (expected != found), row[column] + 1, row[column - 1] + 1)
            diagonal, row[column] = row[column], cheapest
    return row[-1]
