"""What a feature file says of itself: which encoder made it, which trained models hold, too, and what its corpus is.

A joint file holds the note on its corpus as JSON in its attribute `corpus`; older files, and imported features, have
none. It is for people: no number depends on it, and the hash of a feature file does not hold it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

NO_ENCODER = "none"  # the model of a part whose corpus lacks the modality
IMPORTED = "imported"  # that of features that others made


@dataclass(frozen=True)
class Identity:
    """Which encoder made a part: model, revision, hash of the weights, layers, precision ... all JSON values."""

    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What to call the encoder: its name on the hub or here; that of a folder with what tells it from others."""
        name, known = str(self.fields.get("model")), ("tiny", "log-mel", "egemaps", "egemaps-functionals", IMPORTED)
        if name in known or self.fields.get("revision") or "weights" not in self.fields:
            return name
        return f"{name} ({self.fields.get('architecture', 'folder')}, weights {str(self.fields['weights'])[:8]})"

    @property
    def of_an_encoder(self) -> bool:
        """Whether there is one; a corpus that lacks the modality needs none."""
        return self.fields.get("model") != NO_ENCODER

    @property
    def imported(self) -> bool:
        """Whether others made the features, so that it is their values which the identity is of."""
        return self.fields.get("model") == IMPORTED

    def to_json(self) -> str:
        """One canonical line: sorted keys, no spaces."""
        return json.dumps(dict(self.fields), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Identity":
        """The inverse of `to_json`; raises ValueError when `text` is not a JSON object."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("an identity must be a JSON object")
        return cls(fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())


@dataclass(frozen=True)
class Reference:
    """A published score on the test split."""

    model: str
    metric: str  # as the metrics of fusion are called, such as weighted_f1
    value: float  # in the unit of the metric, such as 0 .. 1
    source: str  # where it is from, and under which conditions


@dataclass(frozen=True)
class CorpusNote:
    """See the module."""

    name: str | None  # None: its user did not name it
    licence: str  # of recordings, transcripts and labels, in a line
    references: tuple[Reference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CorpusNote":
        """The inverse of `to_json`; raises KeyError or TypeError when `content` is something else."""
        references = tuple(Reference(**one) for one in content["references"])
        name = content["name"]
        return cls(None if name is None else str(name), str(content["licence"]), references)
