"""The `features` stage: manifest + audio.h5 + text.h5 -> one joint view, data/feats.h5."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.encoders import TextContext, passage_key, passages
from pipeline.errors import StoreError
from pipeline.manifest import Utterance, content_key, label_names, read_manifest
from pipeline.settings import sole_writer
from pipeline.store import (
    MODALITIES,
    UNLABELLED,
    CorpusNote,
    Features,
    Identity,
    Part,
    Utterances,
    kind_of,
    read_features,
    read_part,
    write_joint,
)

log = logging.getLogger(__name__)

NAMED = 5  # utterances that are named in a line
FEW = 3  # utterances that differ: so few may have been corrected


def join(
    manifest: Path,
    audio: Path,
    text: Path,
    target: Path,
    copy_parts: bool = False,
    corpus: CorpusNote | None = None,
    overwrite: bool = False,
) -> Features:
    """Write the joint file, which says of its `corpus` what is given, and return it, read back.

    A part may hold more than the manifest asks for, in any order: utterances are found by what was encoded. It may also
    be the one of this modality in a self-contained joint file, such as `pipeline-import` writes.

    Raises:
        DataError: the manifest is missing or broken.
        StoreError: a part is missing or damaged, or lacks an utterance of the manifest; or `target` holds something
            else and `overwrite` is not given.
        BusyError: another process writes the same file.
    """
    with sole_writer(target):
        records = read_manifest(manifest)
        names = label_names(records, str(manifest))
        parts = {
            modality: _arrange(_read_modality(path, modality), records, modality, manifest)
            for modality, path in (("audio", audio), ("text", text))
        }
        for part in parts.values():
            part.check()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_joint(target, table_of(records, names), names, parts, copy_parts, corpus, overwrite)
        return read_features(target)


def failures(features: Features) -> list[str]:
    """A line for each modality in which utterances could not be encoded."""
    parts = {name: part for name in MODALITIES if (part := getattr(features, name)) is not None and part.failed}
    return [
        f"{name}: {len(part.failed)} utterances could not be encoded and are without it "
        f"({', '.join(f'{count} {status}' for status, count in Counter(part.failed.values()).most_common())})"
        for name, part in parts.items()
    ]


def stand_ins(features: Features, dataset: str) -> list[str]:
    """A line where the recordings of people were encoded by what only knows the voices of the demo."""
    parts = {name: part for name in MODALITIES if (part := getattr(features, name)) is not None}
    tiny = [name for name, part in parts.items() if part.identity.fields.get("model") == "tiny"]
    if dataset == "demo" or not tiny:
        return []
    return [
        f"{' and '.join(tiny)}: of the tiny encoder, which learned from the demo's synthetic voices and sentences; for "
        f"scores that mean something, set {' and '.join(f'{name}.encoder' for name in tiny)} to a real one"
    ]


def table_of(records: Sequence[Utterance], names: Sequence[str]) -> Utterances:
    """The manifest's records as the table of a joint file; `names` are the classes."""
    classes = {name: number for number, name in enumerate(names)}
    return Utterances(
        ids=[record.id for record in records],
        conversations=[record.conversation for record in records],
        turns=np.array([record.turn for record in records], np.int64),
        speakers=[record.speaker or "" for record in records],
        splits=[record.split for record in records],
        labels=np.array(
            [UNLABELLED if record.label is None else classes[record.label] for record in records], np.int64
        ),
        scores=np.array([np.nan if record.score is None else record.score for record in records], np.float32),
    )


def _arrange(part: Part, records: Sequence[Utterance], modality: str, manifest: Path) -> Part:
    """`part` in the order of `records`: by what was encoded, or by id where its maker knew no more."""
    known = {name: place for place, name in enumerate(part.ids)}
    ids = [record.id for record in records]
    if part.identity.imported:
        _check_turns(part, records, manifest)
        _check_told(part, records, manifest)
        _name_missing(part, [name for name in ids if name not in known], modality)
        return part.take(np.array([known.get(name, -1) for name in ids]), ids)
    if known.keys() >= {*ids}:
        return part if part.ids == ids else part.take(np.array([known[name] for name in ids]), ids)
    keys = _keys(part.identity, records, modality)
    missing = [name for name, key in zip(ids, keys, strict=True) if key is not None and key not in known]
    if missing:
        what = "recordings" if modality == "audio" else "texts"
        raise StoreError(
            f"{part.path}: holds no {modality} of {len(missing)} of the {len(ids)} utterances of {manifest}, the first "
            f"'{missing[0]}': it was made from other {what}; run pipeline-{modality} again"
        )
    return part.take(np.array([-1 if key is None else known[key] for key in keys]), ids)


def _name_missing(part: Part, missing: Sequence[str], modality: str) -> None:
    """Warn of utterances that an import has nothing of."""
    if missing:
        named = ", ".join(f"'{name}'" for name in missing[:NAMED]) + (", .." if len(missing) > NAMED else "")
        log.warning("%s: lacks %d utterances, whose %s is empty: %s", part.path, len(missing), modality, named)


def _check_turns(part: Part, records: Sequence[Utterance], manifest: Path) -> None:
    """See that ids of an import mean what they mean in the manifest.

    Those that are made of a conversation and the place of a turn in it say nothing where one of the two has more turns.

    Raises:
        StoreError: they do not, or there is none that both have.
    """
    again = f"import it again with --table {manifest}"
    if not {*part.ids} & {record.id for record in records}:
        raise StoreError(
            f"{part.path}: none of its utterances, such as '{part.ids[0]}', is one of {manifest}, such as "
            f"'{records[0].id}'; {again}"
        )
    imported = Counter(name.rpartition("/")[0] for name in part.ids)
    made = [record for record in records if _is_place(record)]
    for conversation, turns in Counter(record.conversation for record in made).items():
        if imported.get(conversation, turns) != turns:
            raise StoreError(
                f"{part.path}: has {imported[conversation]} turns of conversation '{conversation}', and {manifest} has "
                f"{turns}; their ids are no more than places, so it is not certain which is which; {again}"
            )


@dataclass(frozen=True)
class _Compared:
    """What an import and the manifest say of the utterances of which both say something."""

    what: str  # label, score or speaker
    imported: dict[str, str | float]  # by id
    ours: dict[str, str | float]  # of the same ids

    @property
    def differ(self) -> list[str]:
        """The utterances of which they do not say the same."""
        return [name for name, value in self.imported.items() if value != self.ours[name]]

    @property
    def by_chance(self) -> float:
        """How many would differ if rows were in any order, or if all were shifted by one, which in a sorted table are
        fewer.
        """
        ours = Counter(self.ours.values())
        alike = sum(count * ours[value] for value, count in Counter(self.imported.values()).items())
        in_order = [self.ours[name] for name in sorted(self.ours)]
        shifted = sum(one != other for one, other in pairwise(in_order))
        return min(len(self.ours) - alike / max(1, len(self.ours)), shifted)

    @property
    def is_of_other_rows(self) -> bool:
        """Whether it differs as that of other rows would, and not since words are coded otherwise, one for another."""
        pairs = {(value, self.ours[name]) for name, value in self.imported.items()}
        coded = len(pairs) == len({*self.imported.values()}) == len({*self.ours.values()}) <= len(self.ours) / 2
        return len(self.differ) >= FEW and 2 * len(self.differ) >= self.by_chance and not coded

    @property
    def is_of_the_same_rows(self) -> bool:
        """Whether far more is alike than by chance."""
        return self.by_chance >= FEW and 2 * len(self.differ) < self.by_chance


def _compare(table: Utterances, label_names: Sequence[str], records: Sequence[Utterance]) -> list[_Compared]:
    """Words that one of the two never uses, such as labels of another kind, are not compared."""
    labels = [label_names[label] if label != UNLABELLED else None for label in table.labels]
    scores = [None if np.isnan(score) else float(score) for score in table.scores]
    found = []
    for what, told in (("label", labels), ("score", scores), ("speaker", table.speakers)):
        theirs = {name: value for name, value in zip(table.ids, told, strict=True) if value not in (None, "")}
        ours = {record.id: _told(record, what) for record in records}
        common = {*theirs.values()} & {*ours.values()}
        both = [name for name, value in theirs.items() if value in common and ours.get(name) in common]
        found.append(_Compared(what, {name: theirs[name] for name in both}, {name: ours[name] for name in both}))  # type: ignore[misc]
    return found


def _check_told(part: Part, records: Sequence[Utterance], manifest: Path) -> None:
    """See that an utterance is the same in an import and in the manifest, by what both say of it.

    Ids that are made of places are the same in tables whose rows lie in another order. Speakers may be called by the
    order in which they appear, so they are a sign of that only where nothing else orders the rows.

    Raises:
        StoreError: utterances with such ids differ as those of other rows would.
    """
    if kind_of(part.path) != "joint":
        return
    features = read_features(part.path)
    compared = _compare(features.utterances, features.label_names, records)
    places = {record.id for record in records if _is_place(record)}
    turns = Counter(record.conversation for record in records)
    are_numbers = len(places) == len(records) == len(turns) and all(map(str.isdecimal, turns))
    same = any(one.is_of_the_same_rows for one in compared if one.what != "speaker")
    for one in compared:
        if not (differ := one.differ):
            continue
        found = (
            f"{part.path}: {len(differ)} of {len(one.ours)} utterances have another {one.what} than in {manifest}, the "
            f"first '{differ[0]}': '{one.imported[differ[0]]}' there, '{one.ours[differ[0]]}' in the manifest"
        )
        if not same and one.is_of_other_rows and places & {*differ} and (one.what != "speaker" or are_numbers):
            raise StoreError(
                f"{found}; their ids are no more than places, and rows seem to lie in another order: import it again "
                f"with --table {manifest} if its features have names, else give both tables a column id, then run "
                "pipeline-prepare and pipeline-import again"
            )
        log.warning("%s; the manifest's is taken", found)
    if are_numbers and not any(one.ours for one in compared):
        log.warning(
            "%s: its ids are the numbers of rows, and nothing in it shows that they count the same rows as %s; a "
            "column id in both tables would",
            part.path,
            manifest,
        )


def _told(record: Utterance, what: str) -> str | float | None:
    value = getattr(record, what)
    return float(np.float32(value)) if isinstance(value, float) else value


def _is_place(record: Utterance) -> bool:
    """Whether an id says no more than where a turn stands."""
    return record.id == f"{record.conversation}/{record.turn}"


def _keys(identity: Identity, records: Sequence[Utterance], modality: str) -> list[str | None]:
    """What names the rows of each utterance in a part of this identity."""
    if modality == "audio":
        return [content_key(record, modality) for record in records]
    context = TextContext.of(identity.fields)
    return [passage_key(passage, context) for passage in passages(records, context)]


def _read_modality(path: Path, modality: str) -> Part:
    part = read_part(path, modality)
    found = part.identity.fields.get("modality", modality)
    if found != modality:
        raise StoreError(f"{path}: holds {found} features, expected {modality}; are audio and text swapped?")
    return part
