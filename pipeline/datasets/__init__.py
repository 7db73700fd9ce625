"""Corpora: one file each, which turns what people have on disk into `Turn`s and ends all oddities of its corpus.

An adapter is a function `(DatasetParams) -> Corpus`. It checks nothing that `pipeline.prepare` checks for all corpora
(ids, turns, splits, recordings) and drops no turn.
"""

import difflib
from collections.abc import Callable

from pipeline.datasets import iemocap, mosi, table
from pipeline.datasets.turns import Corpus
from pipeline.params import DatasetParams
from pipeline.settings import SettingsError

ADAPTERS: dict[str, Callable[[DatasetParams], Corpus]] = {
    "demo": table.read,  # the embedded corpus, data/demo, is a table like a user's own
    "table": table.read,
    "iemocap": iemocap.read,
    "mosi": mosi.read,
}
TARGETS: dict[str, tuple[str, ...]] = {  # what the label can be; the first is the default
    "iemocap": ("four", "six"),
    "mosi": ("nonnegative", "positive", "seven", "score"),
}


def read_corpus(params: DatasetParams) -> Corpus:
    """The corpus that `params` names, with the target that they name or its first one.

    Raises:
        SettingsError: the corpus has no such target.
        DataError: see the adapters.
    """
    return ADAPTERS[params.name](params.model_copy(update={"target": pick_target(params.name, params.target)}))


def pick_target(name: str, target: str | None) -> str | None:
    """`target`, or where it is None the first of the corpus `name`; None where the corpus has but one kind of label.

    Raises:
        SettingsError: the corpus has no such target.

    >>> pick_target("iemocap", None), pick_target("iemocap", "six"), pick_target("table", None)
    ('four', 'six', None)
    """
    known = TARGETS.get(name, ())
    if target is None:
        return known[0] if known else None
    if target not in known:
        close = difflib.get_close_matches(target, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise SettingsError(
            f"'dataset.target' is '{target}', but {name} has {', '.join(known) or 'one kind of label only: null'}{hint}"
        )
    return target
