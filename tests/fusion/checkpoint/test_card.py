"""Model cards: true to the run, readable by the hub, and not to be broken by a name in somebody's data."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fusion.checkpoint import Provenance, count_split, load_model, score_intervals
from fusion.checkpoint.card import code, describe_encoder, model_card
from fusion.data import load_split
from fusion.objective import Interval, find_task
from fusion.params import read_recipe
from fusion.tables import escape_markdown
from fusion.training import fit
from pipeline.store import CorpusNote, Features, Identity
from tests.fusion.made import AUDIO, LABELS, TEXT, Made, make_features, tiny_recipe, train_made

NOTE = CorpusNote("conversations of tests", "free for all")
HOSTILE = ["joy | *now*", "`code`\n\n# Forged", "---", "<b>a</b> [x](y) _z_"]


@pytest.fixture(scope="module")
def features() -> Features:
    return replace(make_features(), corpus=NOTE)


@pytest.fixture(scope="module")
def folder(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "hbaf"
    train_made(features, output, tiny_recipe(epochs=2))
    return output / "seed-0"


@pytest.fixture(scope="module")
def provenance(folder: Path) -> Provenance:
    return load_model(folder).provenance


def rows(card: str) -> list[list[str]]:
    """The text of the cells of all rows of all tables, as a reader of Markdown sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    found: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            found.append([])
        if before.type in ("td_open", "th_open"):
            found[-1].append("".join(part.content for part in token.children or []))
    return found


def headings(card: str) -> list[str]:
    tokens = MarkdownIt("commonmark").parse(card.split("---\n", 2)[2])
    return [token.content for before, token in pairwise(tokens) if before.type == "heading_open"]


def test_the_card_of_a_folder_is_made_from_its_run(folder: Path, provenance: Provenance) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == model_card(provenance)
    for text in (
        "# HBAF on conversations of tests",
        "(anger, joy, neutral)",
        provenance.features,
        AUDIO.to_json(),
        TEXT.to_json(),
        '"audio_frames": 8',
        "Corpus: free for all.",
        "arXiv 2503.06405",
    ):
        assert text in card
    assert not [line for line in card.splitlines() if "{{" in line or "{%" in line or "None" in line]


def test_the_card_names_the_features_that_the_model_looks_at(provenance: Provenance) -> None:
    assert "from audio and text features." in model_card(provenance)
    recipe = read_recipe(None, ["model.name=text"])
    card = model_card(replace(provenance, recipe=recipe))
    assert "from text features." in card
    assert AUDIO.to_json() not in card


def test_counts_are_those_of_the_feature_file(provenance: Provenance, features: Features) -> None:
    table = features.utterances
    for split in ("train", "validation"):
        here = [index for index, name in enumerate(table.splits) if name == split]
        counts = provenance.data[split]
        labels = [int(table.labels[index]) for index in here]
        assert counts.utterances == len(here)
        assert counts.conversations == len({table.conversations[index] for index in here})
        assert counts.labels == {name: labels.count(number) for number, name in enumerate(LABELS)}
        assert counts.counted == sum(label >= 0 for label in labels) < counts.utterances
        for part, found in ((features.audio, counts.audio), (features.text, counts.text)):
            assert part is not None
            assert found == sum(len(part.rows(index)) > 0 for index in here) < counts.utterances
    cells = rows(model_card(provenance))
    train = provenance.data["train"]
    assert [
        "train",
        *(str(getattr(train, name)) for name in ("conversations", "utterances", "audio", "text", "counted")),
    ] in cells
    assert ["joy", str(train.labels["joy"]), str(provenance.data["validation"].labels["joy"])] in cells


def test_a_withheld_modality_is_not_counted(features: Features) -> None:
    split = load_split(features, "train", modalities="text", audio_frames=8)
    counts = count_split(split, find_task("label", 3), LABELS)
    assert counts.audio == 0 < counts.text


def test_validation_scores_of_every_head_stand_within_their_intervals(
    provenance: Provenance, features: Features
) -> None:
    split, task = load_split(features, "validation", modalities="both", audio_frames=8), find_task("label", 3)
    train = load_split(features, "train", modalities="both", audio_frames=8)
    answers = fit(train, split, provenance.recipe, 0, classes=3).answers  # the model itself has seen these labels
    assert provenance.intervals == score_intervals(task, split, answers)
    assert set(provenance.intervals) == set(provenance.validation) == {"fused", "audio", "text"}
    cells = rows(model_card(provenance))
    for head, scores in provenance.validation.items():
        own = provenance.intervals[head]
        assert all(own[name].low <= value <= own[name].high for name, value in scores.items())
        shown = [f"{value:.3f} ({own[name].low:.3f} to {own[name].high:.3f})" for name, value in scores.items()]
        assert [head, *shown] in cells


def test_the_hub_reads_the_front_matter(folder: Path, provenance: Provenance) -> None:
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.license) == ("erc-fusion", "other")
    assert data.eval_results is not None
    assert {one.dataset_type for one in data.eval_results} == {"unknown"}  # no id that nobody has given
    found = {one.metric_name: (one.dataset_name, one.dataset_split, one.metric_value) for one in data.eval_results}
    expected = round(provenance.validation["fused"]["weighted_f1"], 6)
    assert found["weighted F1"] == ("conversations of tests", "validation", expected)
    assert len(found) == len(provenance.validation["fused"])


def test_names_of_a_users_data_break_nothing(provenance: Provenance) -> None:
    names = HOSTILE
    data = {
        split: replace(counts, labels=dict(zip(names, range(10, 14), strict=True)))
        for split, counts in provenance.data.items()
    }
    corpus = CorpusNote("my | `corpus`\n---\n# Forged: yes", "*free*\n# Forged")
    encoder = Identity({"model": "my `own`\n# Forged", "weights": "```\n# Forged"})
    hostile = replace(provenance, labels=tuple(names), data=data, corpus=corpus, audio=encoder)
    card = model_card(hostile)
    cells = rows(card)
    for number, name in enumerate(names):
        assert [" ".join(name.split()), str(10 + number), str(10 + number)] in cells
    assert headings(card)[1:] == headings(model_card(provenance))[1:]
    assert headings(card)[0] == r"HBAF on my \| \`corpus\` --- \# Forged: yes"
    data_read = ModelCard(card).data
    assert data_read.eval_results is not None
    assert data_read.eval_results[0].dataset_name == "my | `corpus` --- # Forged: yes"


def test_a_corpus_without_a_name_is_not_given_one(provenance: Provenance) -> None:
    card = model_card(replace(provenance, corpus=CorpusNote(None, "free for all")))
    assert headings(card)[0] == "HBAF"
    assert "Corpus: not named (`features.corpus` of params.yaml names it)." in card
    assert "Trained on one corpus: it knows no more of the world than that." in card
    assert "Trained on conversations of tests: it" in model_card(provenance)


@given(st.text(min_size=1))
def test_escaped_text_reads_as_it_was(text: str) -> None:
    printable = "".join(character for character in text if character.isprintable() or character in " \n")
    (paragraph,) = [token for token in MarkdownIt().parse(f"x {escape_markdown(printable)}") if token.type == "inline"]
    assert "".join(part.content for part in paragraph.children or []) == f"x {' '.join(printable.split())}".strip()


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "`a` and ```b```"])
def test_code_reads_as_it_was(text: str) -> None:
    (paragraph,) = [token for token in MarkdownIt().parse(code(text)) if token.type == "inline"]
    assert [(part.type, part.content) for part in paragraph.children or []] == [("code_inline", text)]


def test_encoders_are_told_in_a_line() -> None:
    fields = {
        "model": "owner/speech", "revision": "abc", "layers": [7, 9], "mix": "stack",
        "precision": "bfloat16", "dtype": "float16", "weights": "0123456789abcdef",
    }  # fmt: skip
    assert describe_encoder(Identity(fields)) == (
        "`owner/speech`, revision `abc`, layers 7, 9 mixed by weights that the model learned, precision bfloat16, "
        "stored as float16, weights `0123456789ab`"
    )
    for mix, words in {"mean": "averaged", "sum": "added up", "concat": "side by side"}.items():
        assert describe_encoder(Identity(fields | {"mix": mix})).count(f"layers 7, 9 {words}") == 1
    assert "frames normalised by speaker" in describe_encoder(Identity(fields | {"frames": "speaker"}))
    assert describe_encoder(Identity({"model": "imported"})) == "`imported`"


def test_a_card_of_scores_has_no_labels_and_no_temperature(tmp_path: Path) -> None:
    features = make_features(Made(conversations=(4, 3, 3), scored=True))
    (trained,) = train_made(features, tmp_path / "m", tiny_recipe({"name": "concat"}, epochs=1, target="score"))
    card = model_card(trained)
    assert "it predicts a score, a real number," in card
    assert "temperature of" not in card
    assert "Corpus: unknown: ask who made the features." in card
    assert "with a score" in card
    assert trained.intervals["fused"]["mae"] != Interval(0, 0)
    assert not [row for row in rows(card) if row[0] == "label"]
    assert ModelCard(card).data.eval_results
