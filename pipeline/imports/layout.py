"""PATH[:KEY], perhaps with lengths, a mask or ids -> a `Source`: how features lie in a file is settled here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.imports import entries as cutting
from pipeline.imports.entries import Lazy, Source, reading, texts_of, value_of
from pipeline.imports.files import Files
from pipeline.imports.pickles import are_dialogues, are_splits, named, read_dialogues, read_splits
from pipeline.params import ImportParams


@dataclass(frozen=True)
class Given:
    """What the user names for one modality, each PATH or PATH:KEY."""

    modality: str
    features: str
    lengths: str | None = None
    mask: str | None = None
    ids: str | None = None

    @property
    def flags(self) -> list[str]:
        """The options that describe the features; all but the last are of a padded array."""
        return [f"--{self.modality}-{what}" for what in ("lengths", "mask", "ids")]


def given_parts(
    modality: str, features: str | None, lengths: str | None, mask: str | None, ids: str | None
) -> list[Given]:
    """One modality as the command line names it; none where it is left out.

    Raises:
        DataError: something describes features that are not named.
    """
    if features is None:
        if lengths or mask or ids:
            raise DataError(f"{lengths or mask or ids}: describes {modality} that is not named; give --{modality} too")
        return []
    return [Given(modality, features, lengths, mask, ids)]


def read_source(given: Given, params: ImportParams, files: Files) -> Source:
    """The features of one modality, as they were found.

    Raises:
        DataError: they cannot be read or told apart; see the modules that read them.
    """
    where = given.features
    tree, key = files.tree(given.features)
    tree = named(tree, params.layout, where)
    beside = [flag for flag, value in zip(given.flags, (given.lengths, given.mask, given.ids), strict=True) if value]
    if are_dialogues(tree) or are_splits(tree):
        if beside:
            raise DataError(f"{where}: already has lengths and ids; leave {beside[0]} out")
        read = read_dialogues if are_dialogues(tree) else read_splits
        return read(tree, key or given.modality, params, where)
    node, beyond = _select(tree, key, where), set[int]()
    alone = isinstance(node, dict) and (beside or [*node] == [NUMPYS_NAME])
    node = value_of(_only(node) if alone else node)
    if isinstance(node, dict):
        if beside:
            fix = "" if beside[0] == given.flags[-1] else "save each without its padding, and "
            raise DataError(
                f"{where}: holds an array for each utterance, by name, and {beside[0]} describes one array of all "
                f"utterances; {fix}leave {beside[0]} out"
            )
        found = _of_names(node, where)
        return replace(found, hint=_lengths_hint(given, node) or found.hint)
    hint = "" if given.lengths else _lengths_hint(given, node)
    if isinstance(node, list | tuple) or (isinstance(node, np.ndarray) and node.dtype == object):
        entries = list(node)
        _refuse_records(entries, where)
        hint = _elements_hint(entries, where, unnamed=node is tree)
        if given.lengths or given.mask:
            raise DataError(f"{where}: is a list of {len(entries)} arrays; lengths and masks are for one array of all")
    elif hasattr(node, "shape"):
        entries = list(_of_array(node, given, params, files, beyond))
    else:
        raise DataError(f"{where}: holds {cutting.shown(node)}, no features")
    return _with_ids(entries, given, files, beyond, hint)


def _lengths_hint(given: Given, node: Any) -> str:
    """For one array that no lengths describe: its rows may be frames or tokens instead of utterances."""
    rows = f"; if one array holds the rows of all utterances, give {given.flags[0]}"
    if isinstance(node, dict):
        if len(node) != 1 or isinstance(_only(node), dict):
            return ""
        name = f"{given.features}{'/' if ':' in given.features else ':'}{next(iter(node))}"
        return f"; if it is one array with a vector for each utterance, name it: {name}{rows}"
    return rows if len(getattr(node, "shape", ())) == 2 else ""


NUMPYS_NAME = "arr_0"  # of an array that savez was given without a name

FEW = 30  # elements that a tuple of no known layout may have


def _elements_hint(entries: list[Any], where: str, unnamed: bool) -> str:
    """What the elements of a list are, for when they are no utterances.

    Raises:
        DataError: one of them cannot be an utterance.
    """
    if not 0 < len(entries) <= FEW:
        return ""
    fix = f"name one by its place, such as {where.rstrip(':')}:{len(entries) - 1}"
    fix += ", or all of them with --set import.layout=[..]" if unnamed else ""
    found = f"it is a list of {len(entries)} elements ({_kinds(entries)}): {fix}"
    if any(isinstance(value_of(entry), dict | set | frozenset | str | bytes) for entry in entries):
        raise DataError(f"{where}: holds no array an utterance and no known layout; {found}")
    return f"; if these are no utterances, {found}"


def _refuse_records(entries: Sequence[Any], where: str) -> None:
    """Raise DataError for a list of dicts that hold texts or numbers: one an utterance, with all that is known."""
    first = entries[0] if entries else None
    if not isinstance(first, dict) or not all(
        isinstance(entry, dict) and entry.keys() == first.keys() for entry in entries
    ):
        return
    if any(isinstance(value, str | int | float) for value in first.values()):
        raise DataError(
            f"{where}: is a list of {len(entries)} dicts with {', '.join(map(cutting.shown, first))}; expected an "
            "array for each utterance: save a dict instead, from the id of each to its array"
        )


def _kinds(entries: Sequence[Any]) -> str:
    """The place, type and size of each."""
    said = []
    for place, element in enumerate(map(value_of, entries)):
        shape = getattr(element, "shape", None)
        size = f" of {len(element)}" if shape is None and hasattr(element, "__len__") else ""
        said.append(f"{place}: " + (f"{type(element).__name__}{size}" if shape is None else f"array {tuple(shape)}"))
    return ", ".join(said)


def _select(tree: Any, key: str | None, where: str) -> Any:
    """What lies in a tree under `key`: a name, a place in a list, or several with / between them; * is every name."""
    if key is None or (isinstance(tree, dict) and not tree):
        return tree
    node = value_of(tree)
    names = [key] if isinstance(node, dict) and key in node else key.split("/")
    for place, name in enumerate(names):
        node = value_of(node)
        if isinstance(node, dict) and name == "*":
            behind = "/".join(names[place + 1 :]) or None
            return {one: _select(inside, behind, f"{where}, '{one}'") for one, inside in node.items()}
        if isinstance(node, dict):
            known = {str(known): known for known in node}
            if name not in known:
                raise DataError(f"{where}: there is no '{name}'; it has {', '.join(list(known)[:20]) or 'nothing'}")
            node = node[known[name]]
        elif isinstance(node, list | tuple) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            few = isinstance(node, list | tuple) and len(node) <= FEW
            has = f" ({_kinds(node)}): name one by its place" if few else "; fix the key"
            raise DataError(f"{where}: no '{name}' lies in a {type(node).__name__}{has}")
    return node


def _only(branch: Mapping[Any, Any]) -> Any:
    """The one array of a file that holds no other."""
    return next(iter(branch.values())) if len(branch) == 1 else branch


def _of_names(branch: Mapping[Any, Any], where: str) -> Source:
    """Arrays by name; names of branches lead those of their leaves: conversation/utterance."""
    leaves: dict[str, Any] = {}
    _flatten(branch, "", leaves, where, 0)
    if not leaves:
        raise DataError(f"{where}: holds no array; fix the path or the key")
    return Source(where, list(leaves.values()), list(leaves), hint=_groups_hint(branch, where))


def _groups_hint(branch: Mapping[Any, Any], where: str) -> str:
    """For a group an utterance, whose data sets have one name; perhaps in a group of others, as in .csd files."""
    lead = f"{where}{'/' if ':' in where else ':'}"
    inside = [(f"{lead}{name}", one) for name, one in branch.items() if isinstance(one, dict) and one]
    if not inside:
        return ""
    if len(inside) == len(branch):
        leaves = [{name for name, leaf in one.items() if not isinstance(leaf, dict)} for _, one in inside]
        for name in sorted(set.intersection(*leaves))[:1]:
            return f"; with * for the ids, '{name}' of each is named by {lead}*/{name}"
    return next(filter(None, (_groups_hint(one, deeper) for deeper, one in inside)), "")


def _flatten(branch: Mapping[Any, Any], lead: str, leaves: dict[str, Any], where: str, depth: int) -> None:
    if depth > 16:
        raise DataError(f"{where}: dicts lie more than 16 deep; make it flat")
    for key, name in zip(branch, texts_of(branch, where), strict=True):
        if isinstance(branch[key], dict):
            _flatten(branch[key], f"{lead}{name}/", leaves, where, depth + 1)
        elif lead + name in leaves:
            raise DataError(f"{where}: two arrays are called '{lead}{name}' once names are written as text")
        else:
            leaves[lead + name] = branch[key]


def _of_array(array: Any, given: Given, params: ImportParams, files: Files, beyond: set[int]) -> list[Lazy]:
    """Entries of one array of all utterances."""
    where, axes = given.features, len(array.shape)
    if axes not in (2, 3):
        raise DataError(
            f"{where}: one array of shape {tuple(array.shape)}; expected (utterances, dim), (rows, dim) with lengths, "
            "or (utterances, positions, dim); several layers are not read: mix them first"
        )
    if given.lengths and given.mask:
        raise DataError(f"{where}: {' and '.join(given.flags[:2])} are both given; leave one out")
    if given.lengths:
        lengths = cutting.whole_numbers(_beside(given.lengths, files), given.lengths)
        return cutting.flat(array, lengths, where) if axes == 2 else cutting.by_lengths(array, lengths, where, beyond)
    if given.mask and axes == 3:
        return cutting.by_mask(array, _beside(given.mask, files), given.mask, params.holes)
    if given.mask:
        raise DataError(f"{where}: a mask is for (utterances, positions, dim), this array is {tuple(array.shape)}")
    return cutting.vectors(array) if axes == 2 else cutting.padded(array, params.padding, where, given.flags[:2])


def _beside(given: str, files: Files) -> Any:
    """Lengths, a mask or ids: the one array or list that PATH[:KEY] names."""
    tree, key = files.tree(given)
    node = _select(tree, key, given)
    node = value_of(_only(node) if isinstance(node, dict) else node)
    if isinstance(node, dict):
        raise DataError(f"{given}: holds {', '.join(map(str, node)) or 'nothing'}; name one: PATH:KEY")
    return node


def _with_ids(entries: list[Any], given: Given, files: Files, beyond: set[int], hint: str) -> Source:
    """The entries by the ids that lie beside them; without, they are in the order of the table."""
    if given.ids is None:
        return Source(given.features, entries, None, hint=hint, beyond=beyond)
    found = _beside(given.ids, files)
    with reading(given.ids):
        ids = texts_of(np.asarray(found).reshape(-1).tolist() if hasattr(found, "shape") else found, given.ids)
    if len(ids) != len(entries):
        raise DataError(f"{given.ids}: {len(ids)} ids for {len(entries)} utterances of {given.features}{hint}")
    repeated = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise DataError(f"{given.ids}: id '{repeated}' is given twice; ids must be unique")
    return Source(given.features, entries, ids, hint=hint, beyond=beyond)
