"""Corpora: one file each, which turns what people have on disk into `Turn`s and ends all oddities of its corpus.

An adapter is a function `(DatasetParams) -> Corpus`. It checks nothing that `pipeline.prepare` checks for all corpora
(ids, turns, splits, recordings) and drops no turn. docs/adding-a-corpus.md shows one being made.
"""

from collections.abc import Callable

from pipeline.datasets import iemocap, meld, mosi, table
from pipeline.datasets.targets import check_target
from pipeline.datasets.turns import Corpus
from pipeline.params import DatasetParams

ADAPTERS: dict[str, Callable[[DatasetParams], Corpus]] = {
    "demo": table.read,  # the embedded corpus, data/demo, is a table like a user's own
    "table": table.read,
    "meld": meld.read,
    "iemocap": iemocap.read,
    "mosi": mosi.read,
}


def read_corpus(params: DatasetParams) -> Corpus:
    """The corpus that `dataset.name` names.

    Raises:
        SettingsError: `dataset.target` is nothing that the corpus has.
        DataError: see the adapters.
    """
    check_target(params)
    return ADAPTERS[params.name](params)
