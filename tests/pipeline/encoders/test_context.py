"""What a text encoder reads with an utterance: the nearest turns of its conversation, in the model's own separators."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.encoders import TINY_TEXT, TextContext, TextEncoder, load_text_encoder, passages
from pipeline.errors import DataError, StoreError
from pipeline.extraction import extract_audio, extract_text
from pipeline.finetuning.examples import Example
from pipeline.finetuning.learners import TextLearner
from pipeline.join import join
from pipeline.manifest import SPLITS, Utterance, manifest_order, write_manifest, write_sources
from pipeline.params import AudioParams, FinetuneTextParams, TextParams
from pipeline.store import read_part
from tests.pipeline.encoders.test_architectures import scores, text_folder

TURNS = [("Joey", "hope"), ("Mona", "joy hope"), ("", ""), ("Joey", "calm"), (None, "pride"), ("Joey", "joy")]


def conversation(name: str, turns: Sequence[tuple[str | None, str]], split: str = "train") -> list[Utterance]:
    return [
        Utterance(id=f"{name}/{turn}", conversation=name, turn=turn, split=split, speaker=speaker, text=text)  # type: ignore[arg-type]
        for turn, (speaker, text) in enumerate(turns)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: text_folder(kind, tmp_path_factory.mktemp(kind)) for kind in ("roberta", "gpt2", "llama")}


def load(folder: Path | str = "tiny", **params: Any) -> TextEncoder:
    return load_text_encoder(TextParams(encoder=str(folder), **params), "cpu")


def readings(encoder: TextEncoder, turns: list[Utterance]) -> list[Any]:
    return [encoder.read(passage) for passage in passages(turns, encoder.context)]


def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def pieces(folder: Path, numbers: Any) -> str:
    """As the tokenizer writes them."""
    return " ".join(tokenizer(folder).convert_ids_to_tokens(list(numbers))).replace(" ##", "")


LAYOUTS = {
    "tiny": ("joey : hope [SEP] mona : joy hope [SEP] joey :", "calm", "[SEP] pride"),
    "roberta": ("joey : hope [SEP] mona : joy hope [SEP] joey :", "calm", "[SEP] pride"),
    "gpt2": ("J o e y : Ġ h o p e Ċ M o n a : Ġ j o y Ġ h o p e Ċ J o e y :", "Ġ c a l m", "Ċ p r i d e"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_neighbours_with_words_stand_around_an_utterance_in_the_models_own_separators(
    kind: str, folders: dict[str, Path]
) -> None:
    encoder = load(folders.get(kind, "tiny"), past_turns=2, future_turns=1, speakers=True)
    found = readings(encoder, conversation("c", TURNS))
    assert tuple(pieces(folders.get(kind, TINY_TEXT), part) for part in found[3]) == LAYOUTS[kind]
    assert not found[2].own
    assert not found[2].before
    assert not found[5].after


@pytest.mark.parametrize("context", [{"past_turns": 1}, {"future_turns": 2}, {"past_turns": 8, "speakers": True}])
@pytest.mark.parametrize("kind", ["roberta", "gpt2", "llama"])
def test_features_are_the_own_rows_of_the_whole_sequence(
    kind: str, context: dict[str, Any], folders: dict[str, Path]
) -> None:
    """As transformers gives them for it alone; ours share a batch."""
    encoder = load(folders[kind], layers=(1, 3), mix="stack", **context)
    found = [one for one in readings(encoder, conversation("c", TURNS)) if one.own]
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    whole = tokenizer(folders[kind])("")["input_ids"]
    before, after = (whole[:1], whole[1:]) if whole else ([], [])
    for one, rows in zip(found, encoder.start(found, "float32")(), strict=True):
        numbers = [*before, *one.before, *one.own, *one.after, *after]
        with torch.inference_mode():
            states = model(torch.tensor([numbers]), output_hidden_states=True).hidden_states
        first = len(before) + len(one.before)
        expected = torch.stack([states[1][0], states[3][0]], dim=1)[first : first + len(one.own)]
        assert rows.shape == expected.shape
        assert np.abs(rows - expected.numpy()).max() < 1e-4


def test_the_utterance_always_fits_and_the_nearest_turns_get_what_is_left(folders: dict[str, Path]) -> None:
    """60 positions, of which RoBERTa leaves one unused, and two are for special tokens."""
    encoder = load(folders["roberta"], past_turns=5, future_turns=5)
    turns = [(None, " ".join([word] * 9)) for word in ("grief", "wrath", "hope", "joy", "calm", "pride", "dread")]
    before, own, after = readings(encoder, conversation("c", turns))[3]
    assert pieces(folders["roberta"], own) == turns[3][1]
    assert pieces(folders["roberta"], before) == " ".join(
        ["grief"] * 7 + ["[SEP]"] + ["wrath"] * 9 + ["[SEP]"] + ["hope"] * 9 + ["[SEP]"]
    )
    assert pieces(folders["roberta"], after) == " ".join(["[SEP]"] + ["calm"] * 9 + ["[SEP]"] + ["pride"] * 9)
    assert len(before) + len(own) + len(after) == 57
    long = [*turns[:3], (None, " ".join(["joy"] * 70)), *turns[4:]]
    assert [len(part) for part in readings(encoder, conversation("c", long))[3]] == [0, 70, 0]


def test_a_text_that_exceeds_the_positions_has_a_row_for_each_of_its_tokens(folders: dict[str, Path]) -> None:
    for params in ({"past_turns": 1}, {}):
        encoder = load(folders["roberta"], **params)
        (alone, last) = readings(encoder, conversation("c", [("Joey", " ".join(["joy"] * 70)), ("Joey", "hope")]))
        rows = encoder.start([alone, last], "float32")()
        assert [len(one) for one in rows] == ([70, 1] if params else [72, 3])


def test_without_a_context_identities_are_as_they_were() -> None:
    assert not {*TextContext._fields} & {*load().identity.fields}
    assert load(speakers=True).identity.fields.items() >= {"past_turns": 0, "future_turns": 0, "speakers": True}.items()


@pytest.fixture
def corpus(tmp_path: Path) -> list[Utterance]:
    """Two conversations with the same words, said by others, and one that shares a turn with them."""
    others = [("Ross" if speaker else speaker, text) for speaker, text in TURNS]
    return [*conversation("a", TURNS), *conversation("b", others), *conversation("c", TURNS[3:], "test")]


CONTEXT = TextParams(past_turns=2, future_turns=1, speakers=True, dtype="float32")


def encode(folder: Path, utterances: list[Utterance], params: TextParams = CONTEXT) -> dict[str, np.ndarray]:
    """The rows of every utterance, from a texts.jsonl in `folder`."""
    folder.mkdir()
    utterances = sorted(utterances, key=manifest_order)
    write_manifest(manifest := folder / "manifest.jsonl", utterances)
    write_sources(manifest, utterances)
    extract_text(folder / "texts.jsonl", folder / "text.h5", params, "cpu")
    extract_audio(manifest, folder / "audio.h5", AudioParams(), folder, "downmix", "cpu")
    features = join(manifest, folder / "audio.h5", folder / "text.h5", folder / "feats.h5")
    assert features.text is not None
    return {name: features.text.rows(index) for index, name in enumerate(features.utterances.ids)}


def test_what_is_encoded_depends_on_the_turns_around_and_on_no_split_name_or_other_conversation(
    corpus: list[Utterance], tmp_path: Path
) -> None:
    found = encode(tmp_path / "found", corpus)
    assert [len(found[f"a/{turn}"]) > 0 for turn in range(6)] == [True, True, False, True, True, True]
    assert len(read_part(tmp_path / "found/text.h5").ids) == 12  # each passage once: c/2 reads what a/5 reads
    moved = [
        u.model_copy(update={"id": f"x{u.id}", "conversation": f"x{u.conversation}", "split": SPLITS[place]})
        for u in corpus
        for place in ["bca".index(u.conversation)]
    ]
    again = encode(tmp_path / "again", moved)
    for name in ("texts.jsonl", "text.h5"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert all(np.array_equal(again[f"x{name}"], found[name]) for name in found)
    alone = encode(tmp_path / "alone", [u for u in corpus if u.conversation == "a"])
    assert all(np.abs(alone[name] - found[name]).max(initial=0) < 1e-4 for name in alone)


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"text": "dread"}, {"a/1", "a/3", "a/4", "a/5"}),
        ({"text": ""}, {"a/1", "a/3", "a/4", "a/5"}),
        ({"speaker": "Mona"}, {"a/1", "a/3", "a/4", "a/5"}),
    ],
)
def test_a_turn_that_changes_changes_what_is_read_with_it(
    change: dict[str, str], affected: set[str], corpus: list[Utterance], tmp_path: Path
) -> None:
    before = encode(tmp_path / "before", corpus)
    after = encode(tmp_path / "after", [u.model_copy(update=change) if u.id == "a/3" else u for u in corpus])
    differ = {
        name
        for name in before
        if before[name].shape != after[name].shape or np.abs(before[name] - after[name]).max(initial=0) > 1e-4
    }
    assert differ == affected
    with pytest.raises(StoreError, match=r"holds no text of .* utterances .*: it was made from other texts"):
        join(
            tmp_path / "after/manifest.jsonl",
            tmp_path / "after/audio.h5",
            tmp_path / "before/text.h5",
            tmp_path / "x.h5",
        )


def test_a_file_that_does_not_say_which_turns_belong_together_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"id":"1","text":"hope"}\n')
    extract_text(tmp_path / "texts.jsonl", tmp_path / "text.h5", TextParams(), "cpu")
    with pytest.raises(DataError, match=r"texts\.jsonl does not say .* run pipeline-prepare again"):
        extract_text(tmp_path / "texts.jsonl", tmp_path / "text.h5", CONTEXT, "cpu")


def test_an_encoder_learns_from_what_it_will_read(folders: dict[str, Path]) -> None:
    """The same sequence as when it encodes, its special tokens included, in fewer positions if so asked."""
    encoder = load(folders["roberta"], past_turns=2, speakers=True)
    said = passages(conversation("c", TURNS), encoder.context)[4]
    for longest in (128, 9):
        params = FinetuneTextParams(encoder=str(folders["roberta"]), max_tokens=longest)
        learner = TextLearner(params, ["calm", "tense"], encoder.context)
        before, own, after = encoder.read(said)
        assert not after
        numbers, marks = learner.read(said).T.tolist()
        assert numbers[1:-1] == [*before, *own][-(longest - 2) :]
        assert [number for number, mark in zip(numbers, marks, strict=True) if mark] == list(own)
    assert learner.reads == {"past_turns": 2, "future_turns": 0, "speakers": True}


def test_what_learns_are_the_states_of_the_utterances_own_tokens(folders: dict[str, Path]) -> None:
    context = TextContext(past_turns=2)
    learner = TextLearner(FinetuneTextParams(encoder=str(folders["roberta"])), ["calm", "tense"], context)
    learner.model.eval()
    read = [learner.read(said) for said in passages(conversation("c", TURNS), context) if said.own.text]
    assert [int(one[:, 1].sum()) for one in read] == [len(learner.tokenize(text)) - 2 for _, text in TURNS if text]
    examples = [Example(one, 0) for one in read]
    batch = learner.collate(examples)
    states = learner.model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    own = [state[: len(one)][one[:, 1].bool()].mean(dim=0) for state, one in zip(states, read, strict=True)]
    expected = learner.model.of_own_tokens(torch.stack(own))
    assert (scores(learner, examples) - expected).abs().max() < 1e-5
