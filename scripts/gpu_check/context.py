"""What every check is given, and how it says what it found."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gpu_check.results import Results, Row, Status, Value
from gpu_check.running import Method, in_process, last_lines
from gpu_check.sizes import Size

NEEDS_A_GPU = "needs a GPU"


@dataclass
class Case:
    """One thing that is tried: values, and what is required of them. Without a requirement it is a measurement."""

    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    required: int = 0
    broken: list[str] = field(default_factory=list)
    needs_a_gpu: bool = False

    def __setitem__(self, name: str, value: Value) -> None:
        self.values[name] = value

    def require(self, holds: bool, otherwise: str) -> None:
        """Fail, with the text `otherwise`, unless it `holds`."""
        self.required += 1
        if not holds:
            self.broken.append(otherwise)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Take down a value, and fail where it is above the limit, or no number."""
        self[name] = value
        self.require(value <= limit, f"{name} is {value:.3g}, at most {limit:g} expected")

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Take down a value, and fail where it is below the limit, or no number."""
        self[name] = value
        self.require(value >= limit, f"{name} is {value:.5g}, at least {limit:g} expected")

    @property
    def status(self) -> Status:
        """What it came to."""
        if self.broken:
            return "failed"
        if self.needs_a_gpu:
            return "not run"
        return "passed" if self.required else "measured"


@dataclass(frozen=True)
class Context:
    """Where and how large; `check` is the name of the check that it is for."""

    device: str  # cpu | cuda
    size: Size
    work: Path  # a folder for files of this run
    kit: Path | None  # what `gpu_check.kit` made
    features: Path | None  # a joint file of the demo that was made beforehand
    results: Results
    method: Method = "fork"
    deadline: float = 0.0  # of `time.monotonic`
    check: str = ""

    @property
    def has_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device != "cpu"

    @property
    def judges(self) -> bool:
        """Whether the size is one for which scores and speeds mean something."""
        return self.size.name == "full"

    def of(self, check: str) -> "Context":
        """The same for that check."""
        return replace(self, check=check)

    def apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns in a process of its own; raises EndedEarlyError."""
        return in_process(self.method, self.deadline - time.monotonic(), function, *arguments)

    @contextmanager
    def case(self, name: str) -> Iterator[Case]:
        """Try something; an error is the case's outcome, not the check's. Its line is written at the end."""
        case, started = Case(), time.perf_counter()
        try:
            yield case
        except Exception:
            case.broken.append(last_lines())
        case["seconds"] = round(time.perf_counter() - started, 3)
        note = "; ".join([*case.broken, *case.notes, *([NEEDS_A_GPU] if case.needs_a_gpu else [])])
        self.results.add(Row(self.check, name, case.status, case.values, note))

    def synchronize(self) -> None:
        """Wait for the GPU, if there is one."""
        if self.has_gpu:
            torch.cuda.synchronize()
