"""What `dataset.target` may be: which annotation of a corpus is its label."""

import difflib

from pipeline.params import DatasetParams
from pipeline.settings import SettingsError

TARGETS: dict[str, tuple[str, ...]] = {  # the first one is meant where dataset.target is null
    "meld": ("emotion", "sentiment"),
    "iemocap": ("four", "six"),
    "mosi": ("nonnegative", "positive", "seven", "score"),
}


def check_target(params: DatasetParams) -> None:
    """Hold `dataset.target` to what the corpus has.

    Raises:
        SettingsError: naming what is accepted.
    """
    accepted = TARGETS.get(params.name, ())
    if params.target is not None and params.target not in accepted:
        kinds = " | ".join(accepted) or "null only: its label is the column of dataset.columns.label"
        close = difflib.get_close_matches(params.target, accepted, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise SettingsError(f"'dataset.target' is '{params.target}'; {params.name} accepts {kinds}{hint}")


def target_of(params: DatasetParams) -> str:
    """The target of a corpus that has several, the default resolved."""
    return params.target or TARGETS[params.name][0]
