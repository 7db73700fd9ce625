"""What a command needs of its machine: cores, free memory within the limits of its container or job, threads, and
what libraries read from the environment when they are loaded.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pipeline.settings.precision import settle_cublas

if TYPE_CHECKING:
    import torch


MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 1 << 30  # bytes, where the system does not tell
# what a RuntimeError says where memory ran out, as torch 2.11 words it
OUT_OF_MEMORY = (
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)",  # Linux, Windows
    r"std::bad_alloc",
    r"Not enough memory (for workspace|to allocate)",  # convolutions without cuDNN; MKL's Fourier transforms
    r"CUDA (driver )?error: out of memory",  # outside torch's own allocator, pinned memory included
    r"(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED",
    r"(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",  # a handle, which takes memory when it is created
    r"CUDNN_STATUS_INTERNAL_ERROR(_HOST_ALLOCATION_FAILED|_DEVICE_ALLOCATION_FAILED|(?!_))",
    r"(FIND|GET) was unable to find an engine to execute this computation",  # no workspace fitted
)


def count_cores() -> int:
    """Cores that this process may keep busy, at least 1: those it is bound to, or the share of time that it has."""
    quotas = [quota for folder in _groups() if (quota := _quota(folder)) is not None]
    return max(1, min(len(os.sched_getaffinity(0)), *map(int, quotas))) if quotas else len(os.sched_getaffinity(0))


def in_bytes(number: float) -> str:
    """A number of bytes in the unit that suits it.

    >>> in_bytes(1_536_000_000), in_bytes(2_500_000), in_bytes(400)
    ('1.536 GB', '2.5 MB', '0.4 kB')
    """
    if number >= 1e9:
        return f"{number / 1e9:.3f} GB"
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def free_bytes(device: "torch.device", share: float = 1.0) -> int:
    """Bytes that are free on `device`; of a GPU's, no more than `share` of all that it has."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return min(free, int(share * total))
    available = [_available(), *(_left_in(folder) for folder in _groups())]
    return min((found for found in available if found is not None), default=UNKNOWN)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a GPU, or of this machine, was too small.

    Few of these errors are `torch.OutOfMemoryError`: it is raised by torch's own allocator of GPU memory alone.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(re.search(words, str(error)) for words in OUT_OF_MEMORY)


def _groups() -> Iterator[Path]:
    """Folders of the groups that the process is in, its own first."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = CGROUP / own  # in a container with a view of its own the root is its group
    yield folder
    while folder != CGROUP and CGROUP in folder.parents:
        folder = folder.parent
        yield folder


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a group may take."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_in(folder: Path) -> int | None:
    """What files hold in the cache counts as free: the system takes it back where memory is short."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        cached = sum(int(size) for name, size in lines if name in ("inactive_file", "active_file"))
        return None if limit == "max" else max(0, int(limit) - int(used) + cached)
    except (OSError, ValueError):
        return None


Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


class Threads(ThreadPoolExecutor):
    """A pool that Ctrl-C cannot catch half way through `submit`.

    KeyboardInterrupt comes anywhere in the main thread. Inside `submit` it can leave a lock of the pool taken, for
    which its threads, and whoever waits for them, then wait for ever.
    """

    def submit(
        self, function: Callable[Arguments, Found], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Found]:
        """As the base class does, which `map` calls, too."""
        with ctrl_c_waits():
            return super().submit(function, *args, **kwargs)


def take_cores(number: int) -> None:
    """This thread's operations of torch take so many cores from now on.

    Torch would give the number to threads that begin later, too; they get what they would have got.
    """
    import torch

    with _taking, ctrl_c_waits(), ThreadPoolExecutor(1) as another:
        others = another.submit(torch.get_num_threads).result()
        torch.get_num_threads()  # a thread that torch has not met would take the number of the others later
        torch.set_num_threads(number)
        another.submit(torch.set_num_threads, others).result()


_taking = threading.Lock()


@contextmanager
def cores(number: int) -> Iterator[None]:
    """Inside, this thread's operations of torch take so many cores; with one, sums have the same bits everywhere."""
    import torch

    before = torch.get_num_threads()
    take_cores(number)
    try:
        yield
    finally:
        take_cores(before)


class SingleCoreThreads(Threads):
    """Threads in each of which torch computes by one core."""

    def __init__(self, number: int) -> None:
        super().__init__(number, initializer=take_cores, initargs=(1,))


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C does what it does when the context is left; other threads than the main one it never meets."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []

    def remember(_: int, frame: FrameType | None) -> Any:
        came.append(frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])


def settle_libraries() -> None:
    """To be called before torch is loaded; what the user has set stays."""
    # before torch starts its threads: ones that wait actively for each other on busy cores take all the time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps what it made for each of a thousand shapes, up to 1.6 MB each, and batches come in ever new ones:
    # memory would grow with the corpus
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    settle_cublas()


NEEDLESS = ("accelerate", "scipy", "torch_distributed", "torchaudio")  # for encoders; transformers loads what is there
COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # for it, on functions of torch and transformers
_only_encodes = threading.Event()


def only_encode() -> None:
    """Say that this process, a command's, does nothing with transformers but encode; see `load_transformers`."""
    _only_encodes.set()


def load_transformers() -> None:
    """To be called before anything of transformers is imported; spares a process that only encodes seconds.

    There transformers is told that the `NEEDLESS` are not installed, and torch's compiler is loaded once somebody
    compiles. A program of a user's own gets all of it: it may train with transformers as well.
    """
    if not _only_encodes.is_set() or "transformers.modeling_utils" in sys.modules:
        return
    import torch  # noqa: F401
    from transformers import utils
    from transformers.utils import import_utils

    for place in (utils, import_utils):
        for name in NEEDLESS:
            setattr(place, f"is_{name}_available", lambda *_, **__: False)
    spec = find_spec(COMPILER)
    if spec is not None and COMPILER not in sys.modules:
        sys.modules[COMPILER] = module_from_spec(spec)
        sys.modules[COMPILER].__class__ = _Compiler


class _Compiler(ModuleType):
    """torch's compiler before it is loaded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module by those who look through all
            raise AttributeError(name)
        return partial(self._mark, name) if name in MARKS else getattr(self._loaded(), name)

    def _mark(self, mark: str, function: Any = None, *more: Any, **options: Any) -> Any:
        if function is None:
            return lambda function: self._mark(mark, function, *more, **options)
        if function.__module__.partition(".")[0] in ("torch", "transformers"):
            return function
        return getattr(self._loaded(), mark)(function, *more, **options)

    def _loaded(self) -> ModuleType:
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return self
