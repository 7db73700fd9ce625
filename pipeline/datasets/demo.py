"""The embedded corpus (data/demo/README.md says what it is): the table adapter with nothing to configure."""

from pipeline.datasets import table
from pipeline.datasets.turns import Corpus
from pipeline.params import DatasetParams


def read(params: DatasetParams) -> Corpus:
    """The turns of data/demo/utterances.csv."""
    return table.read(params)
