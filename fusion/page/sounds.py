"""Recordings on the page: the files themselves as long as there is room, else where they lie beside it."""

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

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
