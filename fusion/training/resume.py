"""The resume state: all that a training run needs to go on after an epoch as if nothing had happened.

The file begins with the SHA-256 of the rest: a bit that changed on the disk would train another model in silence.
"""

import hashlib
import io
import logging
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.runtime import write_file

DIGEST = hashlib.sha256().digest_size
KEEP_SECONDS = 30.0  # as commands have it: what a kill costs at most

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class State:
    """A run between two epochs; tensors and plain values only, so that loading executes nothing."""

    model: dict[str, Tensor]
    stage: str  # which one is under way
    best: dict[str, dict[str, Tensor]]  # weights of the best epoch so far of each of its branches
    optimizer: dict[str, Any]
    average: list[Tensor]  # running means of its weights, empty where there are none
    random: dict[str, Tensor]  # states of the random generators by name
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class StateFile:
    """Where a run keeps its state, and the fingerprint of everything that decides its numbers."""

    path: Path
    fingerprint: str
    seconds: float = 0.0  # a state younger than so many stays: writing takes longer than an epoch of a small model

    def save(self, state: State) -> None:
        """Replace the state on disk at once: a kill at any moment leaves the old one or the new one.

        Raises:
            OutputError: it cannot be written.
        """
        if self.path.exists() and abs(time.time() - self.path.stat().st_mtime) < self.seconds:
            return
        buffer = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, **vars(state)}, buffer)
        content = buffer.getvalue()
        write_file(self.path, hashlib.sha256(content).digest() + content)

    def load(self) -> State | None:
        """The state on disk, its tensors on the CPU; None where there is none of this run."""
        if not self.path.is_file():
            return None
        try:
            written = self.path.read_bytes()
            if hashlib.sha256(written[DIGEST:]).digest() != written[:DIGEST]:
                raise ValueError("damaged")
            content = torch.load(io.BytesIO(written[DIGEST:]), map_location="cpu", weights_only=True)
            fingerprint = content.pop("fingerprint")
            state = State(**content)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            log.warning("%s: not a readable state (%s); training starts afresh", self.path, _one_line(error))
            return None
        if fingerprint != self.fingerprint:
            log.warning("%s: of other parameters, features or versions; training starts afresh", self.path)
            return None
        return state

    def delete(self) -> None:
        """Remove the state; the run is finished."""
        self.path.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
