"""Corpora: one file each, which turns what people have on disk into `Turn`s and ends all oddities of its corpus.

An adapter is a function `(DatasetParams) -> Corpus`. It checks nothing that `pipeline.preparation` checks for all
corpora (ids, turns, splits, recordings) and drops no turn. docs/adding-a-corpus.md shows one being made.
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.datasets.corpus import Corpus, Counts, Turn, describe_corpus, unused_key_warnings
    from pipeline.datasets.registry import ADAPTERS, read_corpus
    from pipeline.datasets.repairs import SOUNDS, as_on_disk, fix_surrogates, repair_controls
    from pipeline.datasets.table import SPLIT_NAMES, read_rows, read_table, unused_columns
else:
    __getattr__ = door(__name__, __file__)
