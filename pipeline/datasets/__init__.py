"""Corpora: one file each, which turns what people have on disk into `Turn`s and ends all oddities of its corpus.

An adapter is a function `(DatasetParams) -> Corpus`. It checks nothing that `pipeline.prepare` checks for all corpora
(ids, turns, splits, recordings) and drops no turn.
"""

from collections.abc import Callable

from pipeline.datasets import table
from pipeline.datasets.turns import Corpus
from pipeline.params import DatasetParams

ADAPTERS: dict[str, Callable[[DatasetParams], Corpus]] = {
    "demo": table.read,  # the embedded corpus, data/demo, is a table like a user's own
    "table": table.read,
}
