"""What the page shows of a manifest (JSON lines, one an utterance): texts, recordings and statuses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import FeatureError


@dataclass(frozen=True)
class Record:
    """One line."""

    text: str
    status: str
    audio: str | None  # relative to the corpus root
    start: float | None  # seconds in that file
    end: float | None
    seconds: float | None  # of sound; None: not known


def read_records(path: Path) -> dict[str, Record]:
    """The lines of the manifest at `path`, by id.

    Raises:
        FeatureError: it is missing, or a line is not an utterance.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold line ends of other kinds
    except OSError as error:
        raise FeatureError(f"{path}: cannot be read ({error.strerror}); name the manifest with --manifest") from None
    except UnicodeDecodeError:
        raise FeatureError(f"{path}: not UTF-8; run pipeline-prepare to write it anew") from None
    records = {}
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                if not isinstance(content := json.loads(line), dict):
                    raise TypeError("a line holds one JSON object")
                records[_string(content, "id")] = _record(content)
            except (ValueError, KeyError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise FeatureError(
                    f"{path}, line {number}: not an utterance ({reason}); run pipeline-prepare again"
                ) from None
    return records


def _record(content: Mapping[str, Any]) -> Record:
    samples, rate = _number(content, "samples"), _number(content, "sample_rate")
    return Record(
        text=_string(content, "text") if "text" in content else "",
        status=_string(content, "status"),
        audio=None if content.get("audio") is None else _string(content, "audio"),
        start=_number(content, "start"),
        end=_number(content, "end"),
        seconds=samples / rate if samples and rate else None,
    )


def _string(content: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := content[key], str):
        raise TypeError(f"'{key}' is {value!r}, expected a text")
    return value


def _number(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"'{key}' is {value!r}, expected a number or null")
    return value
