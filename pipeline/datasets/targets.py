"""What `dataset.target` may be: which annotation of a corpus is its label."""

from pipeline.params import DatasetParams
from pipeline.settings import SettingsError

TARGETS: dict[str, tuple[str, ...]] = {  # the first one is meant where dataset.target is null
    "meld": ("emotion", "sentiment"),
}


def check_target(params: DatasetParams) -> None:
    """Hold `dataset.target` to what the corpus has.

    Raises:
        SettingsError: naming what is accepted.
    """
    accepted = TARGETS.get(params.name, ())
    if params.target is not None and params.target not in accepted:
        kinds = " | ".join(accepted) or "null only: its label is the column of dataset.columns.label"
        raise SettingsError(f"'dataset.target' is '{params.target}'; {params.name} accepts {kinds}")


def target_of(params: DatasetParams) -> str:
    """The target of a corpus that has several, the default resolved."""
    return params.target or TARGETS[params.name][0]
