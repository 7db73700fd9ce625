"""The turns around an utterance that a text encoder reads with it, and who says each (`text.past_turns`,
`text.future_turns`, `text.speakers`).

Neighbours are turns of the same conversation that have words, in the order in which they are said. How they are laid
out is our choice; for RoBERTa it is that of EmoBERTa (arXiv 2108.12009, section 3) with a separator behind every turn:

    encoders             <s> Joey: earlier </s></s> Monica: earlier </s></s> Joey: own </s></s> Monica: later </s>
    language models      Joey: earlier \\n Monica: earlier \\n Joey: own \\n Monica: later

The separator is what the tokenizer puts between two texts. The utterance itself always fits; neighbours get what is
left of the model's positions, the nearest ones first (the one before, the one behind, the second before ..), and the
one that exceeds it keeps its tokens that are nearest. Features are of the utterance's own tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple

from pipeline.errors import DataError, EncoderError
from pipeline.manifest import Source, Utterance, key_of

PROBE = "a"  # a text that every vocabulary can hold, to see which special tokens surround it
RECENT = 4096  # texts whose tokens are remembered: a neighbour is read again with the next turn


class TextContext(NamedTuple):
    """What is read with an utterance, besides its own words."""

    past_turns: int = 0
    future_turns: int = 0
    speakers: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "TextContext":
        """What an identity, or the section `text`, says; nothing where it says nothing."""
        return cls(**{name: fields[name] for name in cls._fields if name in fields})


NO_CONTEXT = TextContext()


class Said(NamedTuple):
    """A turn as it is read."""

    speaker: str | None  # None where names are not read
    text: str


@dataclass(frozen=True)
class Passage:
    """An utterance (`own.text` is empty where it has no words) and what is read before and behind it."""

    id: str
    name: str  # for messages
    own: Said
    past: Sequence[Said] = ()  # as they were said, so the last one is nearest
    future: Sequence[Said] = ()


def passages(utterances: Sequence[Source], context: TextContext) -> list[Passage]:
    """The passage of every utterance; turns of a conversation come in the order in which they are said.

    Raises:
        DataError: a line of texts.jsonl does not say which conversation it is of.
    """
    conversations: dict[str | int | None, list[Source]] = defaultdict(list)
    places = []
    for one in utterances:
        found = conversations[one.conversation if isinstance(one, Utterance) else one.group]
        places.append((found, len(found)))
        if one.text:
            found.append(one)
    if None in conversations and any(context):
        raise DataError(
            "texts.jsonl does not say which turns are of one conversation, as an earlier version wrote it; run "
            "pipeline-prepare again"
        )

    def said(turns: Sequence[Source]) -> tuple[Said, ...]:
        return tuple(Said((turn.speaker or None) if context.speakers else None, turn.text) for turn in turns)

    return [
        Passage(
            id=one.id,
            name=one.name,
            own=said([one])[0],
            past=said(turns[max(0, place - context.past_turns) : place]) if one.text else (),
            future=said(turns[place + 1 : place + 1 + context.future_turns]) if one.text else (),
        )
        for one, (turns, place) in zip(utterances, places, strict=True)
    ]


def passage_key(passage: Passage, context: TextContext) -> str | None:
    """Hash (hex) of all that is read for an utterance; None where it has no words."""
    if not passage.own.text:
        return None
    around = [passage.own.speaker, passage.past, passage.future, context] if any(context) else []
    return key_of([passage.own.text, *around])


def due(utterances: Sequence[Source], context: TextContext) -> list[Passage]:
    """What is to be encoded, each passage once, by its key."""
    found: dict[str, Passage] = {}
    for passage in passages(utterances, context):
        if key := passage_key(passage, context):
            found.setdefault(key, replace(passage, id=key))
    return list(found.values())


class Reading(NamedTuple):
    """Token numbers of an utterance, and of what is read before and behind it; special tokens at the ends left out."""

    before: Sequence[int]
    own: Sequence[int]
    after: Sequence[int]


class Reader:
    """Passages -> readings of at most `room` tokens, unless the utterance alone has more.

    Args:
        separator: token numbers between two turns.
    """

    def __init__(self, tokenize: Callable[[str], list[int]], separator: Sequence[int], room: int) -> None:
        self._tokenize = lru_cache(RECENT)(tokenize)
        self._separator, self._room = list(separator), room
        # a vocabulary that holds words with the blank before them needs one behind a name
        self._blank = " " if len(tokenize(" " + PROBE)) == len(tokenize(PROBE)) else ""

    def read(self, passage: Passage) -> Reading:
        """An utterance that exceeds the room is read by itself."""
        name, own = self._turn(passage.own)
        room = self._room - len(own)
        before = name if len(name) <= room else []
        room -= len(before)
        after: list[int] = []
        for earlier, later in zip_longest(reversed(passage.past), passage.future):
            for turn, behind in ((earlier, False), (later, True)):
                if turn is None or room <= len(self._separator):
                    continue
                tokens = [token for part in self._turn(turn) for token in part]
                if behind:
                    tokens = [*self._separator, *tokens][:room]
                    after += tokens
                else:
                    tokens = [*tokens, *self._separator][-room:]
                    before = [*tokens, *before]
                room -= len(tokens)
        return Reading(before, own, after)

    def _turn(self, said: Said) -> tuple[list[int], list[int]]:
        """Token numbers of the speaker's name and of the words."""
        if not said.speaker:
            return [], self._tokenize(said.text)
        return self._tokenize(f"{said.speaker}:"), self._tokenize(self._blank + said.text)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token numbers that the tokenizer puts before and after a text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE, add_special_tokens=True, truncation=False, padding=False)["input_ids"]
    if not bare:
        raise EncoderError(f"the tokenizer makes no token of {PROBE!r}; no such tokenizer is supported")
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise EncoderError("the tokenizer changes a text when it adds special tokens; no such tokenizer is supported")


def separator(tokenizer: Any, causal: bool) -> list[int]:
    """Token numbers between two turns: a line end for a language model, else what the tokenizer has between two texts.

    Where it has none, its token that separates or ends texts.
    """
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    between = [] if causal else _between_a_pair(tokenizer)
    ends = [one for one in (tokenizer.sep_token_id, tokenizer.eos_token_id) if one is not None]
    return between or (line_end if causal else []) or ends[:1] or line_end


def _between_a_pair(tokenizer: Any) -> list[int]:
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    before, after = special_tokens(tokenizer)
    pair = tokenizer(PROBE, PROBE, add_special_tokens=True)["input_ids"]
    between = pair[len(before) + len(bare) : len(pair) - len(bare) - len(after)]
    return between if pair == [*before, *bare, *between, *bare, *after] else []
