"""What a corpus holds, counted, beside what its authors published. Pure.

Counts are of `utterances`, `conversations`, `speakers`, `recordings` (that can be used), `labelled` utterances and
`label <name>`, where there are scores also of `scored` utterances, in each split and in `all`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.datasets import Counts
from pipeline.manifest import OK, SPLITS, Utterance

ALL = "all"
COLUMNS = [*SPLITS, ALL]


@dataclass(frozen=True)
class Difference:
    """A count that is not the published one, and the statuses that account for it."""

    what: str
    split: str
    found: int
    published: int
    because: Counter[str]

    def __str__(self) -> str:
        reasons = ", ".join(f"{status} {count}" for status, count in self.because.most_common())
        return (
            f"{self.what}, {self.split}: {self.found}, published {self.published} ({reasons or 'no status says why'})"
        )


def count(utterances: Sequence[Utterance]) -> dict[str, dict[str, int]]:
    """How many of what there are in each of `COLUMNS`."""
    found: dict[str, dict[str, int]] = {}
    labels = sorted({utterance.label for utterance in utterances if utterance.label is not None})
    has_scores = any(utterance.score is not None for utterance in utterances)
    for column in COLUMNS:
        chosen = select(utterances, column)
        own = Counter(utterance.label for utterance in chosen)
        counts = {
            "utterances": len(chosen),
            "conversations": len({utterance.conversation for utterance in chosen}),
            "speakers": len({utterance.speaker for utterance in chosen} - {None}),
            "recordings": sum(utterance.samples > 0 for utterance in chosen),
            **({"scored": sum(utterance.score is not None for utterance in chosen)} if has_scores else {}),
            "labelled": len(chosen) - own[None],
            **{f"label {label}": own[label] for label in labels},
        }
        for what, number in counts.items():
            found.setdefault(what, {})[column] = number
    return found


def compare(utterances: Sequence[Utterance], published: Counts) -> list[Difference]:
    """Every published count that is not what was found."""
    found = count(utterances)
    differences = []
    for what, columns in published.items():
        for column, expected in columns.items():
            here = found.get(what, {}).get(column, 0)
            if here != expected:
                because = statuses(_concerned(select(utterances, column), what))
                differences.append(Difference(what, column, here, expected, because))
    return differences


def statuses(utterances: Iterable[Utterance]) -> Counter[str]:
    """How often each status occurs, `ok` left out."""
    return Counter(status for utterance in utterances for status in utterance.status.split("+") if status != OK)


def select(utterances: Sequence[Utterance], column: str) -> list[Utterance]:
    """Those of a split, or all."""
    return [utterance for utterance in utterances if column in (ALL, utterance.split)]


def _concerned(utterances: list[Utterance], what: str) -> list[Utterance]:
    """Whose statuses can tell why there are fewer of `what`."""
    if what == "recordings":
        return [utterance for utterance in utterances if not utterance.samples]
    if what.startswith("label"):
        return [utterance for utterance in utterances if utterance.label is None]
    return []  # a turn that is not there has no status
