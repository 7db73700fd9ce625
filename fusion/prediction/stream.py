"""A running conversation on standard input, turn by turn: a JSON line in, a JSON line out.

A line that cannot be answered is answered with why, and the stream goes on as if it had not been there.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from fusion.prediction.predictor import Conversation, Predictor
from fusion.prediction.recordings import inside
from fusion.prediction.records import Turn, to_json_lines
from pipeline.settings import ErcError, Section, SettingsError, check_section

LONGEST_LINE = 1 << 20  # bytes


class StreamedTurn(Section):
    """What a line may say."""

    text: str | None = None
    audio: str | None = None  # path in --root
    speaker: str | None = None
    conversation: str = "0"
    start: float | None = None  # seconds in the recording
    end: float | None = None
    last: bool = False  # of its conversation, which is forgotten behind it; the next such line begins it anew


def answer_stream(predictor: Predictor, lines: BinaryIO, answers: TextIO, root: Path) -> str:
    """Answer every line at once; returns what there was, for people."""
    stream, counts = _Stream(predictor, root), Counter[str]()
    for number, line in enumerate(_lines(lines), start=1):
        if not line.strip():
            continue
        try:
            answer = stream.answer(line, f"line {number}")
            counts["answered"] += 1
        except ErcError as error:
            told = " ".join(str(error).split()).removeprefix(f"line {number}: ")
            answer = json.dumps({"line": number, "error": told}) + "\n"
            counts["refused"] += 1
        answers.write(answer)
        answers.flush()
    return f"{counts['answered']} lines answered, {counts['refused']} refused"


class _Stream:
    """The conversations that go on."""

    def __init__(self, predictor: Predictor, root: Path) -> None:
        self._predictor, self._root = predictor, root
        self._conversations: dict[str, Conversation] = {}

    def answer(self, line: bytes, where: str) -> str:
        """Raises ErcError where there is no answer."""
        said = check_section(_parse(line, where), "", StreamedTurn, where)
        audio = inside(said.audio, where, self._root) if said.audio else None
        turn = Turn(said.text, audio, speaker=said.speaker, start=said.start, end=said.end)
        conversation = self._conversations.get(said.conversation, self._predictor.conversation(said.conversation))
        try:
            answer = to_json_lines([conversation.add(turn)], ascii_only=True)
            self._conversations[said.conversation] = conversation
        finally:
            if said.last:  # a turn that is refused ends it, too
                self._conversations.pop(said.conversation, None)
        return answer


def _parse(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise SettingsError(f"{where}: longer than {LONGEST_LINE} bytes; a line is one turn")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f'{where}: not JSON ({error}); expected an object such as {{"text": "..."}}') from None
    if not isinstance(content, dict):
        raise SettingsError(f"{where}: expected a JSON object, found a {type(content).__name__}")
    return {_whole(key): _whole(value) if isinstance(value, str) else value for key, value in content.items()}


def _whole(text: str) -> str:
    """Half a character, which JSON may escape, has no form in UTF-8: it becomes '?', as in a table."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _lines(lines: BinaryIO) -> Iterator[bytes]:
    """Every line; of one that is too long, one byte more than what is allowed."""
    while line := lines.readline(LONGEST_LINE + 1):
        rest = line
        while not rest.endswith(b"\n") and (rest := lines.readline(LONGEST_LINE)):
            pass
        yield line
