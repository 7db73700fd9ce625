"""Which entry of a source belongs to which utterance.

Names are compared under the rules below; the one that fits most utterances is taken for the whole source, the first of
them if several fit as many. Turns may be counted from 0 or as the table numbers them: where both fit alike and differ,
or a name counts beyond the last turn, the source is refused, since features could shift to a neighbour. Names that are
those of conversations are taken for these where that leaves fewer utterances without an entry. A source
without names must have an entry for each row of the table.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.datasets import SOUNDS, Turn
from pipeline.errors import DataError
from pipeline.imports.entries import Source, is_list, value_of
from pipeline.manifest import Utterance


@dataclass(frozen=True)
class Row:
    """An utterance, the turn that it was, and the turn's place in the table."""

    utterance: Utterance
    turn: Turn
    place: int


@dataclass(frozen=True)
class Match:
    """The entries of the utterances, in their order."""

    source: Source
    entries: list[int | None]  # None: the source has nothing for this utterance
    rule: str
    unused: list[str]  # names in the source that no utterance has
    by_turn: bool = False  # the names tell no more than the place in a conversation


def _without_ending(name: str) -> str:
    """A recording's name without its ending; other names may hold points, too."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.with_suffix("").as_posix() if path.suffix.lower() in SOUNDS and path.stem else path.as_posix()


def _last(name: str) -> str:
    return PurePosixPath(_without_ending(name)).name


def _numbered(row: Row) -> str | None:
    """By the turn as the table numbers it."""
    order = row.turn.order
    return f"{row.turn.conversation}/{int(order)}" if order == int(order) else None


def _recording(row: Row) -> str | None:
    return None if row.turn.audio is None else _without_ending(row.turn.audio)


NUMBERED = "conversation/turn"
BY_PLACE = "conversation/turn, counted from 0"
# rule -> what an utterance is called, what an entry's name is compared as
RULES: dict[str, tuple[Callable[[Row], str | None], Callable[[str], str]]] = {
    "id": (lambda row: row.turn.id, str),
    NUMBERED: (_numbered, str),
    BY_PLACE: (lambda row: f"{row.utterance.conversation}/{row.utterance.turn}", str),
    "recording": (_recording, _without_ending),
    "recording's file name": (lambda row: None if row.turn.audio is None else _last(row.turn.audio), _last),
    "id, by file name": (lambda row: row.turn.id, _last),
}


def match(source: Source, rows: Sequence[Row]) -> Match:
    """Find the entry of every utterance; `rows` are in manifest order.

    Raises:
        DataError: nothing fits, a name fits several, the numbers of entries and rows differ, or a conversation has
            another number of turns than the table.
    """
    if source.names is None:
        if len(source.entries) != len(rows):
            raise DataError(
                f"{source.where}: {len(source.entries)} utterances, but the table has {len(rows)} rows; where they "
                f"have no names they must be as many, in the same order{source.hint}"
            )
        return Match(source, [row.place for row in rows], "the order of the table", [])
    best = _best(source, rows)
    if not source.whole and (best is None or best.entries.count(None)) and _are_conversations(source, rows):
        by_conversation = _as_conversations(source, best, rows)
        if by_conversation is not None:
            source, best = by_conversation, _best(by_conversation, rows)
    if best is None:
        names = source.names or []
        named = ", ".join(f"'{name}'" for name in names[:3])
        expected = ", ".join(f"'{row.utterance.id}'" for row in rows[:3])
        raise DataError(
            f"{source.where}: none of its {len(names)} names, such as {named}, is an utterance, such as "
            f"{expected}; give the table a column id with these names (dataset.columns.id){source.hint}"
        )
    if best.by_turn:
        _check_turns(source, rows)
    _check_first(best, rows)
    return best


def _best(source: Source, rows: Sequence[Row]) -> Match | None:
    """The match of most utterances; None where no rule fits any."""
    candidates = [_compare(source, names, rule, rows) for names, rule in _comparisons(source)]
    best = min(candidates, key=_misfit)
    if all(entry is None for entry in best.entries):
        return None
    if best.rule in (NUMBERED, BY_PLACE):
        _check_certain(best, candidates, rows)
    _check_unique(best, rows)
    return best


def _comparisons(source: Source) -> list[tuple[Sequence[str], str]]:
    """Names and rules to try; names that only tell a turn's place are compared by it alone."""
    ids: list[tuple[Sequence[str], str]] = [] if source.ids is None else [(source.ids, rule) for rule in RULES]
    return ids + [(source.names or [], rule) for rule in ([BY_PLACE] if source.whole else RULES)]


def _misfit(candidate: Match) -> tuple[int, int]:
    """Utterances without an entry, entries without an utterance."""
    return candidate.entries.count(None), len(candidate.unused)


def _check_certain(best: Match, candidates: Sequence[Match], rows: Sequence[Row]) -> None:
    """Refuse names that tell a turn by its number, where it is not certain what the numbers mean."""
    fix = "give the table a column id with these names (dataset.columns.id)"
    known = {row.utterance.conversation for row in rows}
    beyond = [name for name in best.unused if name.rpartition("/")[0] in known]
    if beyond and not best.by_turn:
        raise DataError(
            f"{best.source.where}: '{beyond[0]}' is no turn of its conversation in the table; other turns may be "
            f"counted otherwise, too: {fix}"
        )
    for other in candidates:
        if other.rule in (NUMBERED, BY_PLACE) and _misfit(other) == _misfit(best) and other.entries != best.entries:
            raise DataError(
                f"{best.source.where}: turns in names such as '{best.source.name(0)}' may count from 0 or be those of "
                f"the table, and both fit alike; {fix}"
            )


def _compare(source: Source, names: Sequence[str], rule: str, rows: Sequence[Row]) -> Match:
    called, compared = RULES[rule]
    entries: dict[str, int] = {}
    for index, name in enumerate(names):
        if entries.setdefault(compared(name), index) != index:
            return Match(source, [None] * len(rows), rule, [])  # this rule cannot tell two entries apart
    keys = [called(row) for row in rows]
    found = [None if key is None else entries.get(key) for key in keys]
    taken = {index for index in found if index is not None}
    unused = [name for index, name in enumerate(names) if index not in taken]
    return Match(source, found, rule, unused, by_turn=source.whole and names is source.names)


def _check_unique(found: Match, rows: Sequence[Row]) -> None:
    entry, count = Counter(entry for entry in found.entries if entry is not None).most_common(1)[0]
    if count > 1:
        first = rows[found.entries.index(entry)].utterance.id
        raise DataError(
            f"{found.source.where}: '{found.source.name(entry)}' would belong to {count} utterances, such as '{first}' "
            f"(compared by {found.rule}); give the table a column id that names each (dataset.columns.id)"
        )


def _are_conversations(source: Source, rows: Sequence[Row]) -> bool:
    return bool({row.utterance.conversation for row in rows} & set(source.names or ()))


def _as_conversations(source: Source, best: Match | None, rows: Sequence[Row]) -> Source | None:
    """The source by conversation, if its names fit the table's conversations better than its utterances (`best`).

    Raises:
        DataError: they do, but name utterances, too, and not every entry has as many turns as its conversation.
    """
    named = set(source.names or ())
    missing = sum(row.utterance.conversation not in named for row in rows)
    unused = named - {row.utterance.conversation for row in rows}
    if best is not None and missing + len(unused) >= sum(_misfit(best)):
        return None
    found = _by_turns(source)
    if best is None:
        return found
    expected = Counter(row.utterance.conversation for row in rows)
    turns = Counter(name.rpartition("/")[0] for name in found.names or ())
    if any(turns[name] != expected[name] for name in named - unused):
        raise DataError(
            f"{source.where}: names such as '{source.name(0)}' are conversations of the table and its utterances, too, "
            f"compared by {best.rule}, and not every entry has as many turns as its conversation; name the entries by "
            "<conversation>/<turn>, or give the table a column id of other names (dataset.columns.id)"
        )
    return found


def _check_first(best: Match, rows: Sequence[Row]) -> None:
    """Refuse numbers that count from 0 where the table counts from 1, or the other way round: all would be shifted."""
    names, ids = best.source.names or [], [row.utterance.id for row in rows]
    if best.rule != "id" or not (best.unused and None in best.entries and all(map(str.isdecimal, [*names, *ids]))):
        return
    numbers, expected = {int(name) for name in names}, {int(name) for name in ids}
    for shift in (1, -1):
        if {number + shift for number in numbers} == expected:
            raise DataError(
                f"{best.source.where}: its names are the numbers from {min(numbers)} to {max(numbers)}, the table's "
                f"ids those from {min(expected)} to {max(expected)}, so features seem to be shifted by one; count both "
                "from the same number"
            )


def _by_turns(source: Source) -> Source:
    """A source by conversation -> one by turn: the first axis (or the list) is the turns."""
    entries, names = [], []
    for index, name in enumerate(source.names or ()):
        value = value_of(source.entries[index])
        value = value[()] if hasattr(value, "id") and hasattr(value, "shape") else value
        if not is_list(value):
            raise DataError(f"{source.where}: '{name}' holds no turns: a {type(value).__name__}")
        entries += list(value)
        names += [f"{name}/{turn}" for turn in range(len(value))]
    return replace(source, entries=entries, names=names, ids=None, whole=True)


def _check_turns(source: Source, rows: Sequence[Row]) -> None:
    """Turns are identified by their place alone, so every conversation must have as many as the table says."""
    expected = Counter(row.utterance.conversation for row in rows)
    found = Counter(name.rpartition("/")[0] for name in source.names or ())
    for conversation, count in found.items():
        if conversation in expected and expected[conversation] != count:
            raise DataError(
                f"{source.where}: conversation '{conversation}' has {count} turns, but {expected[conversation]} in the "
                "table; turns would shift"
            )
