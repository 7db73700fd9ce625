"""Which encoder made features, as feature files and trained models hold it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Identity:
    """Which encoder made a part: model, revision, hash of the weights, layers, precision ... all JSON values."""

    fields: Mapping[str, Any]

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
