"""The corpora, by the names that params.yaml uses."""

from collections.abc import Callable

from pipeline.datasets import iemocap, meld, mosi, table
from pipeline.datasets.corpus import Corpus, check_target
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
