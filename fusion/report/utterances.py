"""What the page shows of utterances besides answers and what a manifest says: the recordings themselves, and the words
behind the rows of text features.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ConfigDict

from fusion.errors import FeatureError
from pipeline.settings import Section, UserPath, read_section
from pipeline.store import Identity

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


class _Place(Section):
    """Where recordings (section `dataset`) or an encoder (`text`) lie, of the sections that the pipeline owns."""

    model_config = ConfigDict(extra="ignore")
    root: UserPath | None = None
    encoder: UserPath | None = None


def read_places(path: Path | None) -> tuple[Path | None, Path | None]:
    """The folder of the corpus and that of the text encoder (or its name on the hub), where the file at `path` says so.

    They serve the report, of which no number depends on them.

    Raises:
        SettingsError: as `read_section`.
    """
    root = read_section(path, "dataset", _Place).root
    encoder = read_section(path, "text", _Place).encoder
    return (Path(root) if root else None), (Path(encoder) if encoder else None)
