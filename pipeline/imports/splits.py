"""Pickles by split: `{train: {audio: .., text: .., id: ..}, valid: .., test: ..}`, padded, as MMSA and MulT have them.

audio, text, vision      (utterances, positions, dim), or a list with an array an utterance
<name>_lengths           (utterances,) real positions; MMSA's unaligned files have them for audio and vision
text_bert                (utterances, 3, positions): token numbers, mask, segments; its mask is that of text
id                       `<video>$_$<clip>`; in some a row (video, start, end)
annotations, classification_labels                 labels
regression_labels, labels                          scores
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.datasets.table import SPLIT_NAMES
from pipeline.datasets.turns import Turn
from pipeline.errors import DataError
from pipeline.imports import cutting
from pipeline.imports.names import is_list, label_of, number_of, text_of
from pipeline.imports.source import Source, value_of
from pipeline.params import ImportParams

BETWEEN = "$_$"  # video and clip
TOLD = ("id", "raw_text", "annotations", "classification_labels", "regression_labels", "labels")
LABELS = ("annotations", "classification_labels")
SCORES = ("regression_labels", "labels")


def are_splits(tree: Any) -> bool:
    """Whether a tree is a dict of splits, each a dict of fields with one entry an utterance."""
    return (
        isinstance(tree, dict)
        and bool(tree)
        and all(isinstance(name, str) and name.lower() in SPLIT_NAMES for name in tree)
        and all(isinstance(fields, dict) and any(name in fields for name in TOLD) for fields in tree.values())
    )


def read_splits(tree: Mapping[str, Any], key: str, params: ImportParams, where: str) -> Source:
    """The features `key` of all splits one behind the other; turns too, where ids name video and clip.

    Raises:
        DataError: there are no such features, or fields of a split differ in length.
    """
    entries: list[Any] = []
    parts: list[list[str] | None] = []
    beyond: set[int] = set()
    for split, fields in tree.items():
        place = f"{where}: split '{split}'"
        found = _entries(fields, key, params, place, beyond, len(entries))
        for name in TOLD:
            if name in fields and _length(fields[name], f"{place}: '{name}'") != len(found):
                raise DataError(f"{place}: '{name}' has not as many entries as '{key}' ({len(found)})")
        parts += [_identifier(fields, index, place) for index in range(len(found))]
        entries += found
    names = None if None in parts else [BETWEEN.join(part) for part in parts if part is not None]
    if names is not None and len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise DataError(f"{where}: id '{name}' is given to {count} utterances; ids must be unique")
    ordered = names is not None and all(part is not None and _order(part) is not None for part in parts)
    turns = (lambda: _turns(tree, parts, params, where)) if ordered else None
    return Source(where, entries, names, turns=turns, beyond=beyond)


def _entries(
    fields: Mapping[str, Any], key: str, params: ImportParams, where: str, beyond: set[int], first: int
) -> list[Any]:
    """The features of one split, whose entries are counted from `first`."""
    if key not in fields or key in (*TOLD, "text_bert"):
        known = [name for name in fields if name not in (*TOLD, "text_bert") and not str(name).endswith("_lengths")]
        raise DataError(f"{where}: no features '{key}'; it has {', '.join(map(str, known))}: name one: PATH:KEY")
    array = value_of(fields[key])
    if isinstance(array, list | tuple) or (isinstance(array, np.ndarray) and array.dtype == object):
        return list(array)
    where = f"{where}: '{key}'"
    if not hasattr(array, "shape") or len(array.shape) not in (2, 3):
        raise DataError(f"{where}: expected (utterances, positions, dim), found {getattr(array, 'shape', type(array))}")
    if len(array.shape) == 2:
        return list(cutting.vectors(array))
    if f"{key}_lengths" in fields:
        lengths = cutting.whole_numbers(fields[f"{key}_lengths"], f"{where}: its lengths")
        return list(cutting.by_lengths(array, lengths, where, beyond, first))
    if key == "text" and "text_bert" in fields:
        tokens = cutting.as_array(fields["text_bert"], f"{where}: text_bert")
        if tokens.ndim == 3 and tokens.shape[1] == 3 and tokens.shape[::2] == tuple(array.shape[:2]):
            return list(cutting.by_mask(array, tokens[:, 1], f"{where}: the mask of text_bert", params.holes))
    return list(cutting.padded(array, params.padding, where, [f"a field {key}_lengths"]))


def _length(value: Any, where: str) -> int:
    value = value_of(value)
    if not is_list(value):
        raise DataError(f"{where}: expected one entry an utterance, found {value!r:.40}")
    return len(value)


def _identifier(fields: Mapping[str, Any], index: int, where: str) -> list[str] | None:
    """The parts of an utterance's id: video and clip, or what a row holds."""
    if "id" not in fields:
        return None
    value = value_of(fields["id"])[index]
    if is_list(value):
        return [_part(part, where) for part in (value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value)]
    return text_of(value, f"{where}: id").split(BETWEEN)


def _part(part: Any, where: str) -> str:
    return str(part) if isinstance(part, float) else text_of(part, f"{where}: id")


def _order(parts: list[str]) -> float | None:
    """What orders the clips of a video."""
    return number_of(parts[1]) if len(parts) > 1 else None


def _turns(tree: Mapping[str, Any], parts: list[list[str] | None], params: ImportParams, where: str) -> list[Turn]:
    identifiers = iter(parts)
    told = LABELS if params.target == "labels" else (params.target,)
    turns = []
    for split, fields in tree.items():
        if params.target != "labels" and params.target not in fields:
            raise DataError(
                f"{where}: no field '{params.target}' (import.target); it has {', '.join(map(str, fields))}"
            )
        for index in range(_length(fields["id"], where)):
            identifier = next(identifiers) or []
            place = f"{where}: '{BETWEEN.join(identifier)}'"
            label = next((value_of(fields[name])[index] for name in told if name in fields), None)
            scores = (number_of(value_of(fields[name])[index]) for name in SCORES if name in fields)
            turns.append(
                Turn(
                    conversation=identifier[0],
                    order=_order(identifier) or 0.0,
                    id=BETWEEN.join(identifier),
                    split=SPLIT_NAMES[split.lower()],
                    label=label_of(label, params.label_names, place),
                    score=next((score for score in scores if score is not None), None),
                )
            )
    return turns
