"""What a model refuses of its arguments, in the words of params.yaml."""

from collections.abc import Mapping
from typing import Any, get_args

from pipeline.settings import SettingsError


def check_choices(choices: Mapping[str, Any], **found: str) -> None:
    """Raise SettingsError unless each of `found` is among its literal type in `choices`."""
    for name, value in found.items():
        accepted = get_args(choices[name])
        if value not in accepted:
            raise SettingsError(f"model.{name} is {value!r}: expected one of {', '.join(accepted)}")


def check_width(dim: int, heads: int, *, halves: bool) -> None:
    """Raise SettingsError unless `heads` attention heads, and two directions where it has `halves`, share `dim`."""
    if dim % heads or (halves and dim % 2):
        raise SettingsError(
            f"model.dim is {dim}: expected a multiple of model.heads ({heads}), and even; change either"
        )
