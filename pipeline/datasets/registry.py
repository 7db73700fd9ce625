"""The corpora, by the names that params.yaml uses, and adapters of others that plug in (docs/adding-a-corpus.md).

What a plug-in returns is checked in full, so that its mistakes are not found later and elsewhere.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Real
from reprlib import repr as excerpt
from typing import Any

from pipeline.datasets import iemocap, meld, mosi, table
from pipeline.datasets.corpus import Corpus, Turn, check_target
from pipeline.errors import DataError
from pipeline.manifest import LARGEST_SCORE, SPLITS
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
        DataError: see the adapters, and `call_adapter` of plug-ins.
    """
    check_target(params)
    adapter = find_adapter(params.name)
    return adapter(params) if params.name in ADAPTERS else call_adapter(adapter, params)


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


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_name(value: object) -> bool:
    return value is None or (isinstance(value, str) and bool(value.strip()))


def _is_number(value: object) -> bool:
    """Of Python, in the range of float32; NaN is in none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST_SCORE <= value <= LARGEST_SCORE


def _are_counts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(columns, Mapping)
        and {*columns} <= {*SPLITS, "all"}
        and all(isinstance(number, Real) for number in columns.values())
        for columns in value.values()
    )


def _maps_text(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, [*value, *value.values()]))


def _lists_text(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


Fields = Mapping[tuple[str, ...], tuple[Callable[[Any], bool], str]]  # -> what fits them, and how messages call it
UNICODE = "of valid Unicode (pipeline.datasets.fix_surrogates repairs half a character)"
NUMBER = "an int or float of Python, finite in 32 bits"

OF_CORPUS: Fields = {
    ("turns",): (
        lambda value: isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping),
        "a list of pipeline.datasets.Turn",
    ),
    ("repaired",): (lambda value: isinstance(value, Counter), "a collections.Counter of sentences"),
    ("notes", "warnings"): (_lists_text, "a list of str"),
    ("published",): (_are_counts, f"what is counted -> {', '.join(SPLITS)} or all -> a number"),
    ("columns",): (_maps_text, "a mapping of str to str"),
}
OF_TURN: Fields = {
    ("conversation",): (lambda value: value is not None and _is_name(value), "a str that is not empty"),
    ("id", "speaker", "label"): (_is_name, "a str that is not empty, or None"),
    ("audio",): (
        lambda value: _is_name(value) and (value is None or _is_text(value)),
        f"a path in a str {UNICODE}, or None",
    ),
    ("split",): (
        lambda value: value is None or (isinstance(value, str) and value in SPLITS),
        f"{', '.join(SPLITS)} or None",
    ),
    ("text",): (_is_text, f"a str {UNICODE}"),
    ("recognised", "where"): (lambda value: value is None or _is_text(value), f"a str {UNICODE}, or None"),
    ("order",): (_is_number, NUMBER),
    ("score", "start", "end"): (lambda value: value is None or _is_number(value), f"{NUMBER}, or None"),
    ("issues",): (lambda value: isinstance(value, tuple) and _lists_text(value), "a tuple of str"),
    ("extra",): (_maps_text, f"a mapping of str to str, all {UNICODE}"),
}


def call_adapter(adapter: Adapter, params: DatasetParams) -> Corpus:
    """What a plug-in's adapter returns, its turns as a list. An error inside the adapter is its own.

    Raises:
        DataError: it takes other arguments than section `dataset`, ends the process, or returns something else than a
            `Corpus` whose every field is what it should be.
    """
    plugin = f"dataset.name '{params.name}'"
    try:
        inspect.signature(adapter).bind(params)
    except TypeError as error:
        raise DataError(
            f"{plugin}: its adapter is called with one argument, section dataset of params.yaml ({error}); "
            "make it a function read(params) that returns a pipeline.datasets.Corpus"
        ) from None
    except ValueError:
        pass  # of something built in, which does not say what it takes
    try:
        corpus = adapter(params)
    except SystemExit as error:
        raise DataError(
            f"{plugin}: its adapter ends the process (exit status {error.code}); have it raise an error, or return a "
            "pipeline.datasets.Corpus"
        ) from error
    if not isinstance(corpus, Corpus):
        raise DataError(
            f"{plugin}: its adapter returned {type(corpus).__name__}; expected a pipeline.datasets.Corpus: "
            "return Corpus(turns)"
        )
    _check_fields(corpus, OF_CORPUS, plugin, "its corpus")
    corpus = replace(corpus, turns=list(corpus.turns))
    for number, turn in enumerate(corpus.turns, start=1):
        place = f"{plugin}, turn {number} of its list"
        if not isinstance(turn, Turn):
            raise DataError(f"{place}: {excerpt(turn)}; expected a pipeline.datasets.Turn; fix the adapter")
        _check_fields(turn, OF_TURN, turn.where if isinstance(turn.where, str) and turn.where else place, "a turn")
    return corpus


def _check_fields(record: Corpus | Turn, expected: Fields, where: str, what: str) -> None:
    for fields, (fits, description) in expected.items():
        for field in fields:
            if not fits(value := getattr(record, field)):
                raise DataError(
                    f"{where}: {field} of {what} is {excerpt(value)}; expected {description}; fix the adapter"
                )
