"""The words behind the rows of text features, where the very tokenizer of their encoder is at hand."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fusion.errors import FeatureError
from pipeline.store import Identity

FILE = "tokenizer.json"


class Words:
    """Texts -> the pieces of them that rows stand for; made by `find_words`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def of(self, text: str, tokens: int) -> list[str] | None:
        """The pieces of `text`, special tokens included; None where they are not as many as its rows."""
        encoding = self._tokenizer.encode(text)
        pieces = [
            token if start == end else text[start:end]
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
        ]
        return pieces if len(pieces) == tokens else None


def find_words(given: Path | None, identity: Identity | None) -> Words | None:
    """The tokenizer of the encoder with this `identity`: in the file or folder `given`, else in the encoder's folder.

    None where there is none, or another one: the page then numbers tokens and says so.

    Raises:
        FeatureError: `given` is no tokenizer.
    """
    if identity is None or "tokenizer" not in identity.fields:
        return None
    for place in [given, Path(str(identity.fields.get("model")))]:
        if place is None or not (file := place / FILE if place.is_dir() else place).is_file():
            continue
        tokenizer = _load(file)
        if hashlib.sha256(tokenizer.to_str().encode()).hexdigest() == identity.fields["tokenizer"]:
            return Words(tokenizer)
    if given is not None and not given.exists():
        raise FeatureError(f"{given}: no such tokenizer; name the {FILE} of the text encoder, or its folder")
    return None


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
