"""Pickles of whole corpora, as published projects lay them out: by conversation, or by split.

By conversation: a tuple of dicts by conversation, each with a list by turn, and lists of the splits.
They go from project to project since DialogueRNN. The elements of a tuple are recognised by their kinds (d: a dict,
l: a list of conversations), as their own loaders unpack them; no name stands in the files.

By split: `{train: {audio: .., text: .., id: ..}, valid: .., test: ..}`, padded, as MMSA and MulT have them.

audio, text, vision      (utterances, positions, dim), or a list with an array an utterance
<name>_lengths           (utterances,) real positions; MMSA's unaligned files have them for audio and vision
text_bert                (utterances, 3, positions): token numbers, mask, segments; its mask is that of text
id                       `<video>$_$<clip>`; in some a row (video, start, end)
annotations, classification_labels                 labels
regression_labels, labels                          scores
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.datasets import SPLIT_NAMES, Turn
from pipeline.errors import DataError
from pipeline.imports import entries as cutting
from pipeline.imports.entries import Source, is_list, label_of, number_of, place_of, text_of, value_of
from pipeline.params import ImportParams

HEAD = ("ids", "speakers", "labels")
SPLITS = ("train", "test", "validation")
LAYOUTS: dict[str, tuple[str, ...]] = {
    # IEMOCAP_features.pkl of DialogueRNN, DialogueGCN, MMGCN, MM-DFN, COGMEN
    "dddddddll": (*HEAD, "text", "audio", "visual", "sentences", "train", "test"),
    # MELD_features_raw.pkl of DialogueRNN
    "ddddddlld": (*HEAD, "text", "audio", "sentences", "train", "test", "sentiment"),
    # MELD_features_raw1.pkl of MMGCN, MM-DFN; their loaders leave out the tenth
    "dddddddlld": (*HEAD, "text", "audio", "visual", "sentences", "train", "test", "tenth"),
    # <corpus>_features_roberta.pkl of COSMIC: IEMOCAP, DailyDialog, EmoryNLP
    "dddddddlll": (*HEAD[1:], "roberta1", "roberta2", "roberta3", "roberta4", "sentences", *SPLITS),
    # the same, MELD
    "ddddddddlll": (*HEAD[1:], "sentiment", "roberta1", "roberta2", "roberta3", "roberta4", "sentences", *SPLITS),
    # iemocap_multimodal_features.pkl of SDT
    "ddddddddddll": (
        *HEAD,
        "text",
        "roberta2",
        "roberta3",
        "roberta4",
        "audio",
        "visual",
        "sentences",
        "train",
        "test",
    ),
    # meld_multimodal_features.pkl of SDT; its loader leaves out the last
    "ddddddddddlld": (
        *(*HEAD, "text", "roberta2", "roberta3", "roberta4", "audio", "visual", "sentences", "train", "test"),
        "last",
    ),
}
OTHER_ELEMENTS = (*HEAD, "sentiment", "sentences", *SPLITS)  # elements that are no features


def named(tree: Any, layout: Sequence[str], where: str) -> Any:
    """A tuple or list of elements as a dict by name, if `layout` or a published layout names them; else `tree` itself.

    Raises:
        DataError: `layout` has another number of names than the tuple has elements.
    """
    if not isinstance(tree, list | tuple) or not tree:
        return tree
    if layout:
        if len(layout) != len(tree):
            raise DataError(f"{where}: has {len(tree)} elements, but import.layout names {len(layout)}")
        return dict(zip(layout, tree, strict=True))
    names = LAYOUTS.get("".join("d" if isinstance(element, dict) else "l" for element in tree))
    return tree if names is None else dict(zip(names, tree, strict=True))


def are_dialogues(tree: Any) -> bool:
    """Whether a tree is such a dict of elements: splits by name, and something told of each turn."""
    return (
        isinstance(tree, dict)
        and "train" in tree
        and not isinstance(tree["train"], dict)
        and any(isinstance(tree.get(name), dict) for name in (*HEAD, "sentences"))
    )


def read_dialogues(elements: Mapping[str, Any], key: str, params: ImportParams, where: str) -> Source:
    """The features `key` of all conversations, and their turns.

    Raises:
        DataError: there are no such features, a conversation lies in two splits, or its elements differ in length.
    """
    features = _by_name(elements, key, where)
    if key in OTHER_ELEMENTS:
        raise DataError(f"{where}: '{key}' holds no features; it has {_features(elements)}")
    told = {name: _by_name(elements, name, where) for name in (*HEAD, "sentences", params.target) if name in elements}
    if params.target not in told and params.target != "labels":
        raise DataError(f"{where}: no element '{params.target}' (import.target); it has {', '.join(elements)}")
    splits = _splits(elements, where)
    conversations = list(dict.fromkeys([*splits, *(name for part in (features, *told.values()) for name in part)]))
    entries: list[Any] = []
    names: list[str] = []
    for conversation in conversations:
        values = features.get(conversation)
        count = _count(told, values, key, conversation, where)
        entries += [None] * count if values is None else list(values)
        names += [f"{conversation}/{index}" for index in range(count)]
    ids = [identifier for conversation in conversations for identifier in told.get("ids", {}).get(conversation, ())]

    unique = _unique(ids, len(entries))
    if unique is None:
        told.pop("ids", None)  # utterances are called by their place: some files have the turn's number here

    def turns() -> list[Turn]:
        return [
            _turn(told, conversation, index, splits.get(conversation), params, where)
            for conversation in conversations
            for index in range(_count(told, features.get(conversation), key, conversation, where))
        ]

    return Source(where, entries, names, unique, whole=True, turns=turns)


def _by_name(elements: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """An element with its conversations' names as texts."""
    element = elements.get(key)
    if not isinstance(element, dict):
        raise DataError(f"{where}: no features '{key}'; it has {_features(elements)}: name one: PATH:KEY")
    named = {text_of(name, where): value for name, value in element.items()}
    if len(named) < len(element):
        raise DataError(f"{where}: two conversations of '{key}' have the same name once they are written as text")
    return named


def _features(elements: Mapping[str, Any]) -> str:
    return ", ".join(name for name in elements if name not in OTHER_ELEMENTS) or "no features"


def _splits(elements: Mapping[str, Any], where: str) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        names = elements.get(split, ())
        if not isinstance(names, set | frozenset) and not is_list(names):
            raise DataError(f"{where}: '{split}' is no list of conversations")
        named = [text_of(name, where) for name in names]
        for name in sorted(named) if isinstance(names, set | frozenset) else named:
            if splits.setdefault(name, split) != split:
                raise DataError(f"{where}: conversation '{name}' lies in two splits, {splits[name]} and {split}")
    return splits


def _count(told: Mapping[str, Mapping[str, Any]], values: Any, key: str, conversation: str, where: str) -> int:
    """How many turns a conversation has: as many as every element says."""
    where = f"{where}: conversation '{conversation}'"
    parts = {name: part[conversation] for name, part in told.items() if conversation in part}
    if values is not None:
        parts[key] = values
    for name, part in parts.items():
        if not is_list(part):
            raise DataError(f"{where}: '{name}' holds a {type(part).__name__}, expected a list with an entry a turn")
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(f"{where}: its elements differ in length ({found}); turns would shift")
    return next(iter(lengths.values()), 0)


def _turn(
    told: Mapping[str, Mapping[str, Any]],
    conversation: str,
    index: int,
    split: str | None,
    params: ImportParams,
    where: str,
) -> Turn:
    place = f"{where}: conversation '{conversation}', turn {index}"
    own = {name: part[conversation][index] for name, part in told.items() if conversation in part}
    identifier, speaker, sentence = own.get("ids"), own.get("speakers"), own.get("sentences")
    return Turn(
        conversation=conversation,
        order=index,
        id=str(identifier) if isinstance(identifier, str) else None,
        speaker=None if speaker is None else _speaker(speaker, place),
        split=split,
        label=label_of(own.get(params.target), params.label_names, place),
        text=sentence if isinstance(sentence, str) else "",
    )


def _speaker(speaker: Any, where: str) -> str | None:
    """A name, or the place of the 1 in a row of zeros."""
    if is_list(speaker) and len(speaker) > 1:
        return place_of(speaker)
    return text_of(speaker, f"{where}: speaker") or None


def _unique(ids: Sequence[Any], count: int) -> list[str] | None:
    """The utterances' own ids, if each has a text of its own."""
    texts = [str(identifier) for identifier in ids if isinstance(identifier, str)]
    return texts if len(texts) == count == len(set(texts)) else None


BETWEEN = "$_$"  # video and clip
OTHER_FIELDS = ("id", "raw_text", "annotations", "classification_labels", "regression_labels", "labels")
LABELS = ("annotations", "classification_labels")
SCORES = ("regression_labels", "labels")


def are_splits(tree: Any) -> bool:
    """Whether a tree is a dict of splits, each a dict of fields with one entry an utterance."""
    return (
        isinstance(tree, dict)
        and bool(tree)
        and all(isinstance(name, str) and name.lower() in SPLIT_NAMES for name in tree)
        and all(isinstance(fields, dict) and any(name in fields for name in OTHER_FIELDS) for fields in tree.values())
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
        for name in OTHER_FIELDS:
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
    if key not in fields or key in (*OTHER_FIELDS, "text_bert"):
        known = [
            name for name in fields if name not in (*OTHER_FIELDS, "text_bert") and not str(name).endswith("_lengths")
        ]
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
        raise DataError(f"{where}: expected one entry an utterance, found {cutting.shown(value)}")
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
