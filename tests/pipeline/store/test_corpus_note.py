"""A feature file says what its corpus is, and no number depends on it."""

import pytest

from pipeline.datasets import ADAPTERS, describe_corpus
from pipeline.datasets.corpus import LICENCES, TARGETS, UNKNOWN
from pipeline.params import DatasetParams
from pipeline.store import CorpusNote, Reference


def test_a_note_survives_json() -> None:
    note = CorpusNote("mine", "CC0", (Reference("HCAM", "weighted_f1", 0.5, "a paper"),))
    assert CorpusNote.from_json(note.to_json()) == note
    assert CorpusNote.from_json(CorpusNote(None, "CC0").to_json()).name is None


@pytest.mark.parametrize(
    "params", [DatasetParams(name=name, target=target) for name, targets in TARGETS.items() for target in targets]
)
def test_every_published_corpus_has_a_licence_and_names_the_target(params: DatasetParams) -> None:
    note = describe_corpus(params)
    assert note.licence == LICENCES[params.name]
    assert note.name is not None
    assert note.name.endswith(f", {params.target}")
    assert all(0 < reference.value < 1 and reference.source for reference in note.references)


def test_references_are_of_the_target_that_they_were_published_for() -> None:
    assert [one.model for one in describe_corpus(DatasetParams(name="meld")).references] == ["HCAM", "MERITS-L"]
    assert describe_corpus(DatasetParams(name="meld", target="sentiment")).references == ()


def test_a_table_has_the_licence_that_its_user_states() -> None:
    table = DatasetParams(name="table")
    assert describe_corpus(table).licence == UNKNOWN
    assert describe_corpus(table, "CC BY 4.0").licence == "CC BY 4.0"


def test_a_table_has_no_name_but_the_one_that_its_user_states() -> None:
    table = DatasetParams(name="table")
    assert describe_corpus(table).name is None
    assert describe_corpus(table, name="my calls").name == "my calls"
    assert describe_corpus(DatasetParams(name="mosi"), name="MOSI, cut anew").name == "MOSI, cut anew, nonnegative"


def test_every_adapter_has_a_note() -> None:
    assert all(describe_corpus(DatasetParams(name=name)).licence for name in ADAPTERS)
