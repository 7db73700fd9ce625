"""What a feature file says of its corpus: its name, the licence of its data, scores that others published on it.

A joint file holds it as JSON in its attribute `corpus`; files of before it, and imported features, have none. It is for
people: no number depends on it, and the hash of a feature file does not hold it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
