"""What was found in the user's files, before it is matched with utterances."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.datasets.turns import Turn
from pipeline.errors import DataError
from pipeline.settings import ErcError


@dataclass(frozen=True)
class Lazy:
    """An array that is read each time it is asked for."""

    read: Callable[[], Any]


def value_of(leaf: Any) -> Any:
    """What a leaf of a tree holds, read if it was not yet."""
    return leaf.read() if isinstance(leaf, Lazy) else leaf


@dataclass(frozen=True)
class Source:
    """One modality as its files tell it: an entry (an array, a list of numbers, or `Lazy`) for each utterance."""

    where: str  # as the user named it, for messages
    entries: list[Any]
    names: list[str] | None  # None: one entry for each row of the table, in its order
    ids: list[str] | None = None  # of utterances, where a source tells them beside other names
    whole: bool = False  # names are <conversation>/<turn>, and each conversation has all its turns
    turns: Callable[[], list[Turn]] | None = None  # one an entry, where it tells of conversations, splits and labels
    hint: str = ""  # what the user may have left out, where the entries do not fit the utterances
    beyond: set[int] = field(default_factory=set)  # entries with values beyond their length; grows as they are read

    def name(self, index: int) -> str:
        """What an entry is called in messages."""
        return f"number {index + 1}" if self.names is None else self.names[index]


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever a library raises on a file that is not what it says becomes one clear error.

    Raises:
        DataError: anything but our own errors was raised inside.
    """
    try:
        yield
    except ErcError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: cannot be read ({reason}); copy it anew, or convert it") from None
