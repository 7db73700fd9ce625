"""What an adapter hands to `pipeline.prepare`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

Counts = Mapping[str, Mapping[str, int]]  # of what (`utterances`, `label joy`), in which split or `all`, how many


@dataclass(frozen=True)
class Turn:
    """One turn as the corpus tells it, before recordings are probed; turns come in the order of the conversation."""

    conversation: str
    order: float  # sorts the turns of a conversation; equal ones keep the order in which they came
    id: str | None = None  # made from conversation and turn if the corpus has none
    speaker: str | None = None
    split: str | None = None  # train, validation, test; or made by prepare
    label: str | None = None
    score: float | None = None
    text: str = ""
    recognised: str | None = None  # what a speech recogniser made of the recording
    audio: str | None = None  # path relative to the corpus root
    start: float | None = None  # seconds
    end: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # what else the corpus says; carried along, read by nothing
    issues: tuple[str, ...] = ()  # of the corpus, for `status` (`pipeline.manifest` lists them all)
    where: str | None = field(default=None, compare=False)  # the file and line that tell of it, to lead messages


@dataclass(frozen=True)
class Corpus:
    """All turns, what was mended on the way (a sentence -> how often), and what a user should know.

    `published` are counts that the corpus' authors state, which `pipeline.published` compares with what is found.
    """

    turns: list[Turn]
    mended: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    published: Counts = field(default_factory=dict)
