"""`pipeline-inspect`: what is in a feature file, and whether its bytes are those that were written."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import Contents, Features, Part, kind_of, read_features, read_part, split_copies

NAMED = 10  # utterances that could not be encoded and are named in the text


@dataclass(frozen=True)
class PartReport:
    """One modality."""

    file: str
    rows: int
    row_shape: list[int]
    dtype: str
    megabytes: float
    rows_per_utterance: dict[str, float]  # shortest, median, longest of the utterances that have any
    empty: int  # utterances without this modality
    digest: str
    encoder: dict[str, Any]
    failed: dict[str, str]  # id -> status of the utterances that could not be encoded
    learned: int  # utterances whose label the encoder was fine-tuned on


@dataclass(frozen=True)
class Report:
    """A feature file."""

    file: str
    kind: str
    utterances: int
    digest: str | None = None  # of a joint file
    conversations: int | None = None
    corpus: dict[str, Any] | None = None  # what the file says of it (`pipeline.store.identity`)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> label -> utterances
    scored: dict[str, int] = field(default_factory=dict)  # split -> utterances with a score; empty where none has one
    copies: list[str] = field(default_factory=list)  # what is the same in two splits, a sentence for each
    parts: dict[str, PartReport] = field(default_factory=dict)
    verified: bool = False

    def to_json(self) -> str:
        """The report for programs."""
        return json.dumps(asdict(self), indent=2)  # ASCII: a terminal of any encoding shows it whole

    def to_text(self) -> str:
        """The report for people."""
        checked = "; " + (
            "every utterance matches its checksum" if self.verified else "values not read (--verify does)"
        )
        lines = [f"{self.file}: {self.kind} file, {self.utterances} utterances{checked}"]
        if self.digest:
            lines.append(f"  {self.conversations} conversations, digest {self.digest}")
        if self.corpus:
            lines.append(f"  corpus: {self.corpus['name'] or 'not named'}; licence: {self.corpus['licence']}")
        for split, labels in self.splits.items():
            counts = ", ".join(f"{label} {count}" for label, count in labels.items())
            scored = f"; scored {self.scored[split]}" if self.scored else ""
            lines.append(f"  {split}: {sum(labels.values())} ({counts}{scored})")
        lines += [f"  warning: {line}" for line in self.copies]
        for name, part in self.parts.items():
            shortest, median, longest = part.rows_per_utterance.values()
            shape = " x ".join(map(str, [part.rows, *part.row_shape]))
            lines.append(f"  {name}: {shape} {part.dtype}, {part.megabytes:.1f} MB, in {part.file}")
            lines.append(
                f"    rows an utterance: {shortest:g} to {longest:g}, median {median:g}; {part.empty} utterances empty"
            )
            if part.failed:
                lines.append(f"    {len(part.failed)} of these could not be encoded: {_named(part.failed)}")
            if part.learned:
                lines.append(f"    the encoder was fine-tuned on the labels of {part.learned} of these")
            lines.append(f"    digest {part.digest}")
            lines += [f"    {key}: {value}" for key, value in part.encoder.items()]
        return "\n".join(lines)


def _named(failed: dict[str, str]) -> str:
    names = [f"'{utterance}' {status}" for utterance, status in failed.items()]
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def inspect_file(path: Path, verify: bool = False) -> Report:
    """Describe a joint file or a part; with `verify`, read every row and compare checksums.

    Raises:
        StoreError: the file cannot be read, or, with `verify`, utterances are damaged: they are named.
    """
    if kind_of(path) == "joint":
        features = read_features(path)
        parts = {name: part for name in ("audio", "text") if (part := getattr(features, name)) is not None}
    else:
        features, part = None, read_part(path)
        parts = {str(part.identity.fields.get("modality", "values")): part}
    if verify:
        for part in parts.values():
            part.check()
    return Report(
        file=path.name,
        kind="joint" if features else "part",
        utterances=len(next(iter(parts.values())).ids),
        **(_table(features) if features else {}),
        parts={name: _describe(part) for name, part in parts.items()},
        verified=verify,
    )


def _table(features: Features) -> dict[str, Any]:
    utterances = features.utterances
    names = [*features.label_names, "(unlabelled)"]  # label -1 is the last one
    splits: dict[str, Counter[str]] = {}
    for split, label in zip(utterances.splits, utterances.labels, strict=True):
        splits.setdefault(split, Counter())[names[label]] += 1
    scored = Counter(dict.fromkeys(splits, 0))
    scored.update(split for split, score in zip(utterances.splits, utterances.scores, strict=True) if score == score)
    return {
        "digest": features.digest,
        "conversations": len(set(utterances.conversations)),
        "corpus": features.corpus.to_json() if features.corpus else None,
        "splits": {split: dict(sorted(labels.items())) for split, labels in splits.items()},
        "scored": dict(scored) if scored.total() else {},
        "copies": split_copies(Contents.of(features), utterances.splits),
    }


def _describe(part: Part) -> PartReport:
    rows = np.diff(part.offsets)
    present = rows[rows > 0] if (rows > 0).any() else np.zeros(1)
    return PartReport(
        file=part.path.name,
        rows=len(part.values),
        row_shape=list(part.values.shape[1:]),
        dtype=part.values.dtype.name,
        megabytes=part.values.nbytes / 1e6,
        rows_per_utterance={
            "shortest": float(present.min()),
            "median": float(np.median(present)),
            "longest": float(present.max()),
        },
        empty=int((rows == 0).sum()),
        digest=part.digest,
        encoder=dict(part.identity.fields),
        failed=dict(part.failed),
        learned=0 if part.learned is None else int(part.learned.sum()),
    )
