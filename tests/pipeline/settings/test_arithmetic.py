"""float32 that is float32, kernels that repeat themselves, and that all is put back."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders.transfer import fetched
from pipeline.finetuning.trainer import reproducible
from pipeline.settings import (
    as_torch_starts,
    deterministic,
    full_float32,
    keep_generators,
    repeatably,
    settle_libraries,
)
from pipeline.settings.precision import PRECISIONS, operations


def state() -> dict[str, Any]:
    """All that torch says of its float32, the older settings included, which contradict themselves at times."""

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError:
            return "contradiction"

    backends = torch.backends
    newer = {name: operations(name).fp32_precision for name in PRECISIONS}
    older = {
        "cudnn": ask(lambda: backends.cudnn.allow_tf32),
        "cublas": ask(lambda: backends.cuda.matmul.allow_tf32),
        "matmul": ask(torch.get_float32_matmul_precision),
    }
    return newer | older


FULL = dict.fromkeys(PRECISIONS, "ieee") | {"cudnn": False, "cublas": False, "matmul": "highest"}


def change_nothing() -> None:
    """As torch starts: TF32 in cuDNN."""


def allow_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


def newer_alone() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def turn_off() -> None:
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def settings() -> Iterator[None]:
    """Torch as it starts, also afterwards."""
    before = {name: operations(name).fp32_precision for name in PRECISIONS}
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for name, precision in before.items():
        operations(name).fp32_precision = precision


@pytest.mark.usefixtures("settings")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", [change_nothing, allow_tf32, medium, newer_alone, turn_off])
def test_float32_is_float32_inside_and_what_it_was_outside(change: Callable[[], None]) -> None:
    change()
    before = state()
    assert before != FULL
    with full_float32():
        assert state() == FULL
        with full_float32():
            assert state() == FULL
        assert state() == FULL
    after = state()
    contradicted = {name for name, value in before.items() if value == "contradiction"}
    assert {k: v for k, v in after.items() if k not in contradicted} == {
        k: v for k, v in before.items() if k not in contradicted
    }


@pytest.mark.usefixtures("settings")
def test_the_last_of_several_threads_puts_it_back() -> None:
    before, entered, leave = state(), threading.Event(), threading.Event()

    def stay() -> None:
        with full_float32():
            entered.set()
            leave.wait()

    other = threading.Thread(target=stay)
    with full_float32():
        other.start()
        entered.wait()
    assert state() == FULL
    leave.set()
    other.join()
    assert state() == before


def test_torchs_own_words_for_what_cannot_repeat_itself_are_known(caplog: pytest.LogCaptureFixture) -> None:
    """A real operation, and the words of cuBLAS (ATen/Context.cpp), which needs a GPU to say them."""

    def do(strict: bool) -> str:
        with deterministic(strict):
            if strict:
                torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))
            return "done"

    assert repeatably(do, "seed 3") == "done"
    assert "seed 3: the same seed may give other numbers the next time: put_" in caplog.text
    assert torch.get_deterministic_debug_mode() == 0

    def multiply(strict: bool) -> str:
        if strict:
            raise RuntimeError("... but this operation is not deterministic because it uses CuBLAS and you have CUDA")
        return "done"

    assert repeatably(multiply, "seed 3") == "done"


def test_another_error_is_raised_and_what_repeats_itself_is_done_once(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bool] = []

    def fail(strict: bool) -> None:
        asked.append(strict)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        repeatably(fail, "seed 3")
    repeatably(asked.append, "seed 3")
    assert asked == [True, True]
    assert not caplog.records


def test_commands_let_cublas_repeat_itself_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    settle_libraries()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # one of the two that torch accepts
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize(("device", "strict", "mode"), [("cuda", True, 2), ("cuda", False, 1), ("cpu", True, 0)])
def test_fine_tuning_repeats_itself_in_full_float32(device: str, strict: bool, mode: int) -> None:
    before = state()
    with reproducible(device, strict):
        assert (torch.get_deterministic_debug_mode(), state()) == (mode, FULL)
    assert (torch.get_deterministic_debug_mode(), state()) == (0, before)


def test_rows_are_awaited_on_the_stream_that_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a device that is not the current one, whose place a CPU takes here."""
    recorded: list[Any] = []

    class Event:
        def record(self, stream: Any = "of the current device") -> None:
            recorded.append(stream)

        def synchronize(self) -> None:
            recorded.append("awaited")

    class Rows(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda:1")

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **options: empty(*shape, **options))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    flat = torch.arange(6.0).view(3, 2)
    wait = fetched(flat.as_subclass(Rows), [1, 2])
    assert recorded == ["of cuda:1"]
    assert [rows.tolist() for rows in wait()] == [[[0, 1]], [[2, 3], [4, 5]]]
    assert recorded[-1] == "awaited"
    assert isinstance(wait()[0], np.ndarray)


def test_the_default_dtype_is_put_back_by_the_last_that_leaves() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        inside, leave = threading.Event(), threading.Event()

        def wait_inside() -> None:
            with as_torch_starts():
                inside.set()
                leave.wait(60)

        other = threading.Thread(target=wait_inside)
        with as_torch_starts():
            other.start()
            assert inside.wait(60)
        among = torch.get_default_dtype()
        leave.set()
        other.join(60)
        after = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
    assert (among, after) == (torch.float32, torch.float64)


def test_modes_alone_take_no_number_back_from_a_generator() -> None:
    with as_torch_starts():
        inside = random.random(), torch.rand(1).item()
    assert (random.random(), torch.rand(1).item()) != inside
    with keep_generators():
        inside = random.random(), torch.rand(1).item()
    assert (random.random(), torch.rand(1).item()) == inside
