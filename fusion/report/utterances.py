"""What the page shows of utterances besides answers: texts, recordings and statuses of a manifest (JSON lines, one an
utterance), the recordings themselves, and the words behind the rows of text features.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fusion.errors import FeatureError
from pipeline.store import Identity


@dataclass(frozen=True)
class Record:
    """One line."""

    text: str
    status: str
    audio: str | None  # relative to the corpus root
    start: float | None  # seconds in that file
    end: float | None
    seconds: float | None  # of sound; None: not known
    extra: Mapping[str, str] = field(default_factory=dict)  # what else the corpus' table says, by column


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
            except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
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
        extra={name: str(value) for name, value in dict(content.get("extra") or {}).items()},
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


# kinds that browsers play, by suffix
TYPES = {
    ".aac": "audio/aac",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".mp4": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".webm": "audio/webm",
}


@dataclass(frozen=True)
class Sound:
    """One recording."""

    name: str  # as the manifest names it
    source: str  # what an audio element takes: the content as a data: URI, or a relative URL
    inside: bool  # whether it is the content


def find_sounds(names: Iterable[str], root: Path, folder: Path, budget: int) -> dict[str, Sound]:
    """Recordings by name, for a page in `folder`; those that are gone or of no kind that browsers play are left out.

    Args:
        names: relative to `root`; the first ones are embedded while they fit into `budget` bytes of the page.
    """
    found: dict[str, Sound] = {}
    for name in names:
        path = root / name
        kind = TYPES.get(path.suffix.lower())
        if name in found or kind is None or not path.is_file():
            continue
        needed = len(head := f"data:{kind};base64,") + (path.stat().st_size + 2) // 3 * 4
        if needed <= budget:
            budget -= needed
            content = base64.b64encode(path.read_bytes()).decode()
            found[name] = Sound(name, head + content, inside=True)
        else:
            found[name] = Sound(name, quote(os.path.relpath(path, folder)), inside=False)
    return found


FILE = "tokenizer.json"


class Words:
    """Texts -> the pieces of them that rows stand for; made by `find_words`."""

    def __init__(self, tokenizer: Any, special: bool = True) -> None:
        """`special`: whether rows are of special tokens, too."""
        self._tokenizer, self._special = tokenizer, special
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def of(self, text: str, tokens: int) -> list[str] | None:
        """The pieces of `text`; None where they are not as many as its rows."""
        encoding = self._tokenizer.encode(text, add_special_tokens=self._special)
        pieces = [
            token if start == end else text[start:end]
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
        ]
        return pieces if len(pieces) == tokens else None


def find_words(identity: Identity | None, near: Sequence[Path] = ()) -> Words | None:
    """The tokenizer that this `identity` of a text encoder states, wherever it is found.

    Looked through are the places `near`, the encoder that comes with the package, and the local cache of the hub.

    Args:
        near: files (tokenizer.json) and folders; one that is not there is passed over, unless it is the only one.

    Returns:
        None where there is none, or another encoder's: the page then numbers tokens and says so.

    Raises:
        FeatureError: a file is no tokenizer, or the only place given is not there.
    """
    if identity is None or "tokenizer" not in identity.fields:
        return None
    for found in _tokenizers(identity, near):
        if hashlib.sha256(found.to_str().encode()).hexdigest() == identity.fields["tokenizer"]:
            return Words(found, special="past_turns" not in identity.fields)  # else rows are of its own tokens
    if len(near) == 1 and not near[0].exists():
        raise FeatureError(f"{near[0]}: no such tokenizer; name the {FILE} of the text encoder, or its folder")
    return None


def _tokenizers(identity: Identity, near: Sequence[Path]) -> Iterator[Any]:
    built_in = Path(str(files("pipeline"))) / "encoders" / "weights" / "tiny-bert"
    for place in [*near, *([built_in] if identity.fields.get("model") == "tiny" else [])]:
        if (file := place / FILE if place.is_dir() else place).is_file():
            yield _load(file)
        if place.is_dir():
            yield from _as_encoders_do(str(place), None)
    if identity.fields.get("revision"):  # of the hub, so its name is one
        yield from _as_encoders_do(str(identity.fields["model"]), str(identity.fields["revision"]))


def _as_encoders_do(place: str, revision: str | None) -> Iterator[Any]:
    """The tokenizer as transformers makes it, which may differ from its file; no network, no code of strangers."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(place, revision=revision, local_files_only=True, trust_remote_code=False)
    except Exception:  # the library raises nothing narrower; the caller reads None
        return
    if backend := getattr(made, "backend_tokenizer", None):
        yield backend


def _load(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise FeatureError(f"{file}: not a tokenizer ({' '.join(str(error).split())[:200]})") from None


def labels(words: Sequence[str], longest: int) -> list[str]:
    """At most `longest` labels; neighbours share one where there are more words.

    >>> labels(["a", "b", "c"], 2)
    ['a', 'b c']
    """
    if len(words) <= longest:
        return list(words)
    bounds = [index * len(words) // longest for index in range(longest + 1)]
    return [" ".join(words[first:last]) for first, last in pairwise(bounds)]
