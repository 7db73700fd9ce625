"""The rows of an ablation table: section `ablations` of params.yaml, every set checked before the first run.

    ablations:
      no gate: {model.hbaf.gate: false}
      no gate, raw: {base: no gate, model.hbaf.levels: raw}        # no gate's overrides too, and compared with that row
      width: {grid: {model.dim: [32, 128]}}                   # rows 'width model.dim=32' and 'width model.dim=128'

The base row, which is params.yaml with the overrides of the command, is always there, and so is row `linear`: the
linear reference on what the base row sees (`fusion.linear`). A combination of a grid that is its base is left out: that
row is in the table already.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.params import (
    AblationParams,
    AblationSet,
    LossParams,
    ModelParams,
    Recipe,
    TrainParams,
    check_model_named,
    own_params,
    read_recipe,
    report_unused,
)
from pipeline.settings import SettingsError, check_section, read_section, suggest

BASE = "base"
LINEAR = "linear"  # the row of the linear reference, which is compared with the base row
SECTIONS = ("model", "loss", "train")
SHARED = ("train.seeds", "train.target")  # without which rows could not be compared


@dataclass(frozen=True)
class Variant:
    """One row: what is trained, and with which row it is compared."""

    name: str
    base: str | None  # None for the base row itself
    overrides: Mapping[str, Any]  # of params.yaml, by `section.key`
    recipe: Recipe


@dataclass(frozen=True)
class _Row:
    """A set, or one combination of its grid, before its overrides are put in place."""

    name: str
    set_name: str
    base: str
    overrides: Mapping[str, Any]  # its own


def read_variants(path: Path | None, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Variant]:
    """The base row and one for each set of the file at `path`, in its order.

    Args:
        path: of params.yaml; None for defaults, which have no set.
        overrides: `section.key=value`, which change the base row and with it every set.
        only: names of sets or rows; none means all. Rows that they are compared with come along.

    Raises:
        SettingsError: a set is not accepted, is like another row, or there is none of such a name.
    """
    source = str(path or "defaults")
    recipe = read_recipe(path, overrides)
    rows = {}
    for row in _expand(read_section(path, "ablations", AblationParams, overrides).sets, source):
        if row.name in rows or row.name in (BASE, LINEAR):
            raise SettingsError(f"{source}: 'ablations.{row.set_name}': a row called '{row.name}' is there already")
        rows[row.name] = row
    chosen = _choose(rows, only, source)
    variants = {BASE: Variant(BASE, None, {}, recipe)}
    for row in chosen:
        variants[row.name] = _build(row, rows, recipe, source)
        place = f"{source}: 'ablations.{row.set_name}'"
        check_model_named(variants[row.name].recipe.model.name, variants[row.name].overrides, place)
    kept = _drop_grid_bases(variants, chosen, source)
    _check_differ(kept, source)
    report_unused(overrides, [one.recipe for one in kept.values()])
    for name in dict.fromkeys(row.set_name for row in chosen):
        of_set = [row for row in chosen if row.set_name == name and row.name in kept]
        given = [key for row in of_set for key in row.overrides]
        report_unused(given, [kept[row.name].recipe for row in of_set], f"{source}: 'ablations.{name}': ")
    return list(kept.values())


def format_value(value: Any) -> str:
    """A value as params.yaml would have it."""
    return value if isinstance(value, str) else json.dumps(value)


def _expand(sets: Mapping[str, AblationSet], source: str) -> Iterator[_Row]:
    for name, one in sets.items():
        twice = sorted(one.grid.keys() & one.overrides.keys())
        if twice:
            raise SettingsError(f"{source}: 'ablations.{name}': {twice[0]} is in the grid and beside it; keep one")
        for values in itertools.product(*one.grid.values()):
            point = dict(zip(one.grid, values, strict=True))
            suffix = "".join(f" {key}={format_value(value)}" for key, value in point.items())
            yield _Row(name + suffix, name, one.base or BASE, one.overrides | point)


def _build(row: _Row, rows: Mapping[str, _Row], recipe: Recipe, source: str) -> Variant:
    overrides: dict[str, Any] = {}
    for ancestor in reversed(_lineage(row, rows, source)):
        overrides |= ancestor.overrides
    return Variant(row.name, row.base, overrides, _override(recipe, overrides, f"{source}: 'ablations.{row.set_name}'"))


def _lineage(row: _Row, rows: Mapping[str, _Row], source: str) -> list[_Row]:
    """The row, the one it is based on, and so on."""
    lineage = [row]
    while (base := lineage[-1].base) != BASE:
        if base not in rows:
            key = f"ablations.{lineage[-1].set_name}.base"
            raise SettingsError(f"{source}: '{key}' is '{base}': no row is called so{suggest(base, rows)}")
        if rows[base] in lineage:
            circle = " -> ".join([*(one.name for one in lineage), base])
            raise SettingsError(f"{source}: 'ablations.{row.set_name}.base' leads back to itself: {circle}")
        lineage.append(rows[base])
    return lineage


def _override(recipe: Recipe, overrides: Mapping[str, Any], source: str) -> Recipe:
    """`recipe` with some keys set, read as strictly as the file itself."""
    contents = {name: getattr(recipe, name).model_dump(mode="json") for name in SECTIONS}
    for key, value in overrides.items():
        section, *names = key.split(".")
        if section in contents and not names:
            raise SettingsError(
                f"{source}: '{key}' is a section, and a set names keys of sections, such as {{model.dropout: 0.1}}; on "
                "the command line: --set 'ablations.NAME={model.dropout: 0.1}'"
            )
        if section not in contents or not all([*names, names]):
            expected = f"expected a key of {', '.join(SECTIONS)}, such as model.dropout, or base, or grid"
            raise SettingsError(f"{source}: unknown key '{key}': {expected}{suggest(section, contents)}")
        if key in SHARED:
            raise SettingsError(f"{source}: {key} cannot be set here: all rows share the {names[0]} of section train")
        _put(contents[section], names, value, f"{source}: '{key}'")
    changed = Recipe(
        check_section(contents["model"], "model", ModelParams, source),
        check_section(contents["loss"], "loss", LossParams, source),
        check_section(contents["train"], "train", TrainParams, source),
    )
    own_params(changed.model, source)
    return changed


def _put(content: dict[str, Any], names: Sequence[str], value: Any, what: str) -> None:
    """Set one key, which may be inside a group."""
    *groups, last = names
    for group in groups:
        if content.get(group) is None:
            content[group] = {}
        content = content[group]
        if not isinstance(content, dict):
            raise SettingsError(f"{what}: '{group}' is not a group of keys")
    content[last] = value


def _choose(rows: Mapping[str, _Row], only: Sequence[str], source: str) -> list[_Row]:
    """The rows that `only` asks for, and all that they are based on; others may be of no use to the model named."""
    known = {BASE, *rows, *(row.set_name for row in rows.values())}
    for name in only:
        if name not in known:
            raise SettingsError(f"--only {name!r}: no set or row of ablations in {source}{suggest(name, known)}")
    chosen = [row for row in rows.values() if not only or row.name in only or row.set_name in only]
    needed = {ancestor.name for row in chosen for ancestor in _lineage(row, rows, source)}
    return [row for row in rows.values() if row.name in needed]


def _drop_grid_bases(variants: Mapping[str, Variant], rows: Sequence[_Row], source: str) -> dict[str, Variant]:
    """All rows but those of a grid that change nothing; a set of which nothing is left is refused."""
    kept = {name: one for name, one in variants.items() if not _same_as_base(one, variants)}
    left = {row.set_name for row in rows if row.name in kept}
    for row in rows:
        if row.set_name not in left:
            raise SettingsError(
                f"{source}: 'ablations.{row.set_name}' changes nothing of '{row.base}': "
                "the chosen model does not take these keys, for this train.target, or they have these values already; "
                "change it, take it out, or name the sets that are wanted with --only"
            )
    return kept


def _same_as_base(variant: Variant, variants: Mapping[str, Variant]) -> bool:
    return variant.base is not None and variants[variant.base].recipe.digest == variant.recipe.digest


def _check_differ(variants: Mapping[str, Variant], source: str) -> None:
    """Rows that are compared with the same one must differ, or the table would count one result twice."""
    seen: dict[tuple[str | None, str], str] = {}
    for name, one in variants.items():
        if one.base is not None and one.base not in variants:
            raise SettingsError(
                f"{source}: 'ablations.{name}.base' is '{one.base}', which changes nothing; name its base"
            )
        first = seen.setdefault((one.base, one.recipe.digest), name)
        if first != name:
            raise SettingsError(f"{source}: rows '{first}' and '{name}' of ablations are the same; take one out")
