"""The corpora, by the names that params.yaml uses, and adapters of others that plug in (docs/adding-a-corpus.md)."""

from collections.abc import Callable
from typing import Any

from pipeline.datasets import iemocap, meld, mosi, table
from pipeline.datasets.corpus import Corpus, Turn, check_target
from pipeline.errors import DataError
from pipeline.manifest import SPLITS
from pipeline.params import CORPUS_PLUGINS, DatasetParams
from pipeline.settings import load_plugin

Adapter = Callable[[DatasetParams], Corpus]

ADAPTERS: dict[str, Adapter] = {
    "demo": table.read,  # the embedded corpus, data/demo, is a table like a user's own
    "table": table.read,
    "meld": meld.read,
    "iemocap": iemocap.read,
    "mosi": mosi.read,
}


def read_corpus(params: DatasetParams) -> Corpus:
    """The corpus that `dataset.name` names.

    Raises:
        SettingsError: `dataset.target` is nothing that the corpus has, or there is no adapter where `dataset.name`
            says.
        DataError: see the adapters; also when a plug-in returns something else than a `Corpus`.
    """
    check_target(params)
    corpus = find_adapter(params.name)(params)
    if not isinstance(corpus, Corpus):
        raise DataError(
            f"dataset.name '{params.name}': its adapter returned {type(corpus).__name__}; expected a "
            "pipeline.datasets.Corpus"
        )
    for turn in corpus.turns if params.name not in ADAPTERS else ():
        _check_turn(turn, params.name)
    return corpus


EXPECTED: dict[tuple[str, ...], tuple[Any, str]] = {  # of the fields of a turn
    ("conversation", "text"): (str, "a str"),
    ("id", "speaker", "split", "label", "recognised", "audio"): (str | None, "a str or None"),
    ("order",): (int | float, "a number"),
    ("score", "start", "end"): (int | float | None, "a number or None"),
    ("issues",): (tuple, "a tuple of str"),
}


def _check_turn(turn: Turn, name: str) -> None:
    """Refuse what a plug-in's adapter got wrong, before it ends somewhere else."""
    where = turn.where or f"dataset.name '{name}'"
    for fields, (kind, expected) in EXPECTED.items():
        for field in fields:
            if not isinstance(value := getattr(turn, field), kind):
                raise DataError(f"{where}: {field} of a turn is {value!r}; expected {expected}; fix the adapter")
    if turn.split not in (None, *SPLITS):
        raise DataError(f"{where}: split of a turn is {turn.split!r}; expected {', '.join(SPLITS)} or None")


def find_adapter(name: str) -> Adapter:
    """The adapter called `name`: one of the table, of an installed plug-in, or `package.module[:function]`.

    Without a function, `read` is meant. Modules are also found in the current folder, as `python -m` would find them.

    Raises:
        SettingsError: there is no such module, or no such function in it. An error inside the module is its own.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    adapter: Adapter = load_plugin("dataset.name", name, CORPUS_PLUGINS, "function", callable, default="read")
    return adapter
