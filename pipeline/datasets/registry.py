"""The corpora, by the names that params.yaml uses, and adapters of others that plug in (docs/adding-a-corpus.md)."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType

from pipeline.datasets import iemocap, meld, mosi, table
from pipeline.datasets.corpus import Corpus, check_target
from pipeline.errors import DataError
from pipeline.params import CORPUS_PLUGINS, DatasetParams
from pipeline.settings import SettingsError

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
    return corpus


def find_adapter(name: str) -> Adapter:
    """The adapter called `name`: one of the table, of an installed plug-in, or `package.module[:function]`.

    Without a function, `read` is meant. Modules are also found in the current folder, as `python -m` would find them.

    Raises:
        SettingsError: there is no such module, or no such function in it. An error inside the module is its own.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    installed = {plugin.name: plugin.value for plugin in entry_points(group=CORPUS_PLUGINS)}
    module, _, function = installed.get(name, name).partition(":")
    function, folder = function or "read", str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        raise SettingsError(
            f"dataset.name '{name}': there is no module '{error.name}' in {folder}, and none is installed; go to the "
            "folder that holds it, or install it"
        ) from None
    adapter: Adapter | None = getattr(found, function, None)
    if not callable(adapter):
        functions = [value for value in vars(found).values() if isinstance(value, FunctionType)]
        own = [value.__name__ for value in functions if value.__module__ == module and value.__name__[0] != "_"]
        raise SettingsError(
            f"dataset.name '{name}': {found.__file__ or module} has no function '{function}'; it has "
            f"{', '.join(own) or 'none'}. Name another one with {module}:<function>"
        )
    return adapter
