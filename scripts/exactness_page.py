"""Measure how exact every supported architecture is, on the toys of its test, and write the table of docs/encoders.md.

python scripts/exactness_page.py
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders_page import PAGE

from pipeline.encoders import TEXT

sys.path.append(str(Path(__file__).parents[1]))

from tests.pipeline.encoders import test_architectures as toys
from tests.pipeline.encoders.test_speech import noise, toy_config

BEGIN, END = "<!-- written by scripts/exactness_page.py -->\n", "<!-- exactness ends -->\n"
Rows = list[np.ndarray]


def main() -> None:
    """Bring the page up to date."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> str:
    """A row for each architecture, with the larger difference where the test has several toys of it."""
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, differences in (*speech(), *text()):
        found[name].append(differences)
    rows = "".join(
        f"| `{name}` | {max(alone for alone, _ in some):.1g} | {max(own for _, own in some):.1g} |\n"
        for name, some in found.items()
    )
    return f"| | alone, in a batch | transformers alone, in a batch |\n|---|---|---|\n{rows}"


def speech() -> Iterator[tuple[str, tuple[float, float]]]:
    """Of the toys of the speech test, whose hidden states are compared all together."""
    clips = noise(*toys.SAMPLES)
    for kind, context in toys.SPEECH_CASES:
        with tempfile.TemporaryDirectory() as folder:
            place = toys.speech_folder(kind, Path(folder))
            encoder = toys.load_audio(place, (0, 1, 2), context)
            own = [toys.own_frames(place, clip, context) for clip in clips]
            yield toy_config(kind).model_type, differences(clips, encoder.encode, own)


def text() -> Iterator[tuple[str, tuple[float, float]]]:
    """Of the toys of the text test."""
    for kind in TEXT:
        said = toys.texts(kind)
        with tempfile.TemporaryDirectory() as folder:
            place = toys.text_folder(kind, Path(folder))
            encoder = toys.load(place, tuple(range(toys.LAYERS + 1)))
            own = [toys.own_states(kind, place, one).numpy() for one in said]
            yield kind, differences([encoder.tokenize(one) for one in said], encoder.encode, own)


def differences(inputs: Sequence[Any], encode: Callable[[list[Any]], Rows], own: Rows) -> tuple[float, float]:
    """The largest one between rows of a batch and of each input alone, and the states of transformers."""
    together = encode(list(inputs))
    alone = [encode([one])[0] for one in inputs]
    left, right = (
        max(float(np.abs(a - b).max()) for a, b in zip(together, others, strict=True)) for others in (alone, own)
    )
    return left, right


if __name__ == "__main__":
    main()
