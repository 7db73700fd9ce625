"""Section `cluster`: whether the work is done here or on a Ray cluster, the connection to it, and the actors that do
items of work; the items of an actor that dies are done again by others.

    with connect(params, device, threads) as cluster:  # None: the engine is `local`
        for item, value in cluster.work(items, make, *arguments): ...

Ray is imported here alone, when it is asked for. Nothing of this section changes a result.

Ray could restart an actor and repeat its calls by itself, but where a node is gone for good it would wait for ever. So
the items of a dead actor go to the others here, and a new actor joins them as soon as a node has room for it.
"""

import hashlib
import importlib
import io
import logging
import math
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar

from pydantic import Field, field_validator

from pipeline.errors import ErcError
from pipeline.settings.sections import Section

TRIES = 3  # actors that may die at one item, or as they start one after the other
LOOK_SECONDS = 5.0  # between looks at which nodes there are

log = logging.getLogger(__name__)


class ClusterError(ErcError):
    """Ray is not there, or its actors cannot do the work."""


@dataclass(frozen=True)
class Share:
    """What each actor gets of its node."""

    cpus: float
    gpus: float
    threads: int  # that torch is to have, which numbers depend on; `make` sees to it

    def room(self, node: dict[str, float]) -> int:
        """How many actors fit into a node with these resources."""
        by_cpus = _times(node.get("CPU", 0.0), self.cpus)
        if not self.gpus:
            return by_cpus
        gpus = node.get("GPU", 0.0)
        return min(by_cpus, _times(gpus, self.gpus) if self.gpus >= 1 else int(gpus) * _times(1.0, self.gpus))


def _times(whole: float, share: float) -> int:
    return math.floor(whole / share + 1e-9)  # ten times 0.1 is 1


@dataclass(frozen=True)
class Installed:
    """What decides the numbers that a machine computes."""

    version: str
    torch: str
    code: str  # hash (hex) of this project's files

    def __str__(self) -> str:
        return f"erc-fusion {self.version} (code {self.code[:8]}) with torch {self.torch}"


def installed_here() -> Installed:
    """What is installed on this machine."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(path for package in ("pipeline", "fusion") for path in (root / package).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return Installed(version("erc-fusion"), version("torch"), digest.hexdigest())


class Actor:
    """What a Ray actor is made of; `start` comes before `work`."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the pipeline's commands, before torch is imported
        self.do: Callable[[Any], Any] | None = None

    def start(self, expected: Installed, make: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        """Check that this node computes the same numbers, and make what does the work."""
        found, node = installed_here(), socket.gethostname()
        if found != expected:
            raise ClusterError(
                f"node {node} has {found}, this machine {expected}: install the same version on every node"
            )
        self.do = _naming_node(make, *arguments)

    def work(self, item: Any) -> Any:
        """The value of `item`."""
        assert self.do is not None
        return _naming_node(self.do, item)


def _naming_node(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ErcError as error:
        error.args = (f"node {socket.gethostname()}: {error}",)
        raise


@dataclass(eq=False)
class _Task:
    item: Any
    deaths: int = 0  # of actors that were at it


@dataclass(eq=False)
class _Member:
    """An actor of the pool."""

    actor: Any
    tasks: list[_Task] = field(default_factory=list)  # that it is at
    started: bool = False


class Pool:
    """Actors with an equal share of their nodes."""

    def __init__(
        self,
        ray: Any,
        share: Share,
        limit: int | None,
        make: Callable[..., Callable[[Any], Any]],
        arguments: Sequence[Any],
        ahead: int,
    ) -> None:
        self.ray, self.share, self.limit, self.ahead = ray, share, limit, ahead
        self.start = (installed_here(), make, *arguments)
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_concurrency": ahead}
        self.actor = ray.remote(Actor).options(**options)
        self.waiting: deque[_Task] = deque()
        self.members: list[_Member] = []
        self.calls: dict[Any, tuple[_Member, _Task | None]] = {}  # by reference; None: the call is `start`
        self.room, self.looked = 0, -LOOK_SECONDS
        self.failed_starts = 0

    def work(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """See `pipeline.settings.Cluster.work`."""
        self.waiting.extend(map(_Task, items))
        try:
            while self.waiting or any(member.tasks for member in self.members):
                self._grow()
                for member in self.members:
                    self._feed(member)
                done, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=LOOK_SECONDS)
                for call in done:
                    yield from self._settle(call)
        finally:
            for member in self.members if self.ray.is_initialized() else ():  # else they are gone
                self.ray.kill(member.actor)

    def _grow(self) -> None:
        """Ask for as many actors as the nodes of this moment have room for, or as are wanted; Ray starts them."""
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            room = sum(self.share.room(node["Resources"]) for node in self.ray.nodes() if node["Alive"])
            if not room and (self.room or not self.members):
                log.warning(
                    "no node of the Ray cluster has %g CPUs and %g GPUs (cluster.cpus, cluster.gpus): waiting for one",
                    self.share.cpus,
                    self.share.gpus,
                )
            self.room = room
        left = len(self.waiting) + sum(len(member.tasks) for member in self.members)
        for _ in range(len(self.members), min(self.limit or max(self.room, 1), left)):
            member = _Member(self.actor.remote())
            self.members.append(member)
            self.calls[member.actor.start.remote(*self.start)] = member, None

    def _feed(self, member: _Member) -> None:
        while member.started and self.waiting and len(member.tasks) < self.ahead:
            if member.tasks and (self.waiting[0].deaths or member.tasks[0].deaths):
                break  # what may have killed an actor is done alone, so that it is known
            task = self.waiting.popleft()
            member.tasks.append(task)
            self.calls[member.actor.work.remote(task.item)] = member, task

    def _settle(self, call: Any) -> Iterator[tuple[Any, Any]]:
        """Take the result of a call that is done, if it has one."""
        member, task = self.calls[call]
        try:
            value = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ErcError):
                raise error.cause from None
            raise
        except self.ray.exceptions.RayError as error:
            yield from self._bury(member, _first_line(error))
            return
        del self.calls[call]
        if task is None:
            member.started, self.failed_starts = True, 0
        else:
            member.tasks.remove(task)
            self._feed(member)
            yield task.item, value

    def _bury(self, member: _Member, reason: str) -> Iterator[tuple[Any, Any]]:
        """Give the tasks of a dead actor back; one that has killed several is given up."""
        self.members.remove(member)
        self.ray.kill(member.actor)  # where only its result was lost
        self.calls = {call: owner for call, owner in self.calls.items() if owner[0] is not member}
        self.looked = -LOOK_SECONDS
        log.warning("an actor of the Ray cluster died, what it was at is done again: %s", reason)
        if not member.started:
            self.failed_starts += 1
            if self.failed_starts == TRIES:
                raise ClusterError(f"{TRIES} actors of the Ray cluster died as they started, the last one: {reason}")
        for task in member.tasks:
            task.deaths += 1
            if task.deaths == TRIES:  # the second and the third time it was alone
                yield task.item, ClusterError(f"{TRIES} actors died at it, the last one: {reason}")
        self.waiting.extendleft(task for task in reversed(member.tasks) if task.deaths < TRIES)


def _first_line(error: Exception) -> str:
    """Why an actor died; the rest of Ray's message is its log."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.startswith("The actor") and "because" in line]
    return (told or lines or [type(error).__name__])[0]


Item = TypeVar("Item")
Value = TypeVar("Value")

REACH_SECONDS = 10.0  # Ray itself tries for minutes

NO_CLIENT = "the Ray client is not supported: run the command on a node of the cluster, with 'auto' or '<head>:6379'"


def _is_of_a_client(address: str | None) -> bool:
    return bool(address and address.startswith("ray://"))


class ClusterParams(Section):
    """Where encoders and ablation runs work."""

    engine: Literal["local", "ray"] = "local"
    address: str | None = None  # null: RAY_ADDRESS, else a Ray that runs on this machine, else one is started here
    actors: Annotated[int, Field(ge=1)] | None = None  # null: as many as the nodes have room for
    cpus: Annotated[float, Field(gt=0)] | None = None  # of each actor; null: its threads, beside a GPU 1
    gpus: Annotated[float, Field(ge=0)] | None = None  # of each actor; null: 1 where the cluster has GPUs, else 0

    @field_validator("address")
    @classmethod
    def _is_of_the_cluster_itself(cls, address: str | None) -> str | None:
        if _is_of_a_client(address):
            raise ValueError(NO_CLIENT)
        return address

    @field_validator("gpus")
    @classmethod
    def _are_whole_or_a_share_of_one(cls, gpus: float | None) -> float | None:
        if gpus and gpus > 1 and not gpus.is_integer():
            raise ValueError("must be a share of one GPU, such as 0.5, or a whole number")
        return gpus


@dataclass(frozen=True)
class Cluster:
    """A Ray that is connected, and what each of its actors gets."""

    ray: Any  # the module
    device: str  # cpu | cuda, of all actors
    share: Share
    actors: int | None

    def put(self, value: Any) -> Any:
        """A reference to `value`, which goes to a node once, however many actors there ask for it."""
        return self.ray.put(value)

    def work(
        self, items: Iterable[Item], make: Callable[..., Callable[[Item], Value]], *arguments: Any, ahead: int = 1
    ) -> Iterator[tuple[Item, Value | ClusterError]]:
        """What actors make of the `items`, as it is done; an item whose actor dies is done again by another one.

        Args:
            make: called as `make(*arguments)` once in each actor, a function that a module holds; what it returns is
                called with one item after the other. References among the `arguments` arrive as their values. It gives
                torch `share.threads` threads.
            ahead: items that an actor is at, each in a thread of its own.

        Returns:
            Pairs of an item and its value, in no order; a ClusterError is the value of an item that killed its actor
            again and again.

        Raises:
            ErcError: what `make` or its function raised, with the name of the node; work that is under way is dropped.
            ClusterError: an actor cannot be started.
        """
        return Pool(self.ray, self.share, self.actors, make, arguments, ahead).work(items)


@contextmanager
def connect(params: ClusterParams, device: str, threads: int) -> Iterator[Cluster | None]:
    """The cluster, while the context lasts; None where the engine is `local`.

    Args:
        device: as of a command's --device: auto, cpu or cuda.
        threads: that torch has here, and in every actor without a GPU: numbers depend on it.

    Raises:
        ClusterError: Ray is not installed or not reached, or has no such device.
    """
    if params.engine == "local":
        yield None
        return
    ray = _import_ray()
    address = params.address or os.environ.get("RAY_ADDRESS")
    if _is_of_a_client(address):
        raise ClusterError(f"RAY_ADDRESS is {address!r}: {NO_CLIENT}")
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with redirect_stdout(WithoutRay(sys.stdout)):
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]  # before it, at times, the traceback of something inside
            raise ClusterError(f"no Ray at {address or 'this machine'}: {reason} (docs/cluster.md)") from error
        try:
            yield _place(ray, params, device, threads)
        finally:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "ray"
        found = "is not installed" if absent else f"cannot be imported ({error})"
        raise ClusterError(
            f"cluster.engine is 'ray', but Ray {found}: pip install 'path/to/erc-fusion[cluster]', "
            "or set cluster.engine to local"
        ) from None


def _reach(address: str | None) -> None:
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray answers at {address} ({error}); start one with ray start --head, or fix cluster.address"
        ) from None


class WithoutRay(io.TextIOBase):
    """A stream without what Ray's threads print of its own accord; the same is in Ray's log files."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def _place(ray: Any, params: ClusterParams, device: str, threads: int) -> Cluster:
    """What each actor gets: one device for all, since numbers depend on it."""
    if device not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"--device {device}: Ray chooses the GPU of each actor; use auto, cpu or cuda")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = params.gpus
    if gpus is None:
        wanted = device == "cuda" or (device == "auto" and _most(nodes, "GPU") > 0)
        gpus = 1.0 if wanted else 0.0
    if (device == "cpu" and gpus > 0) or (device == "cuda" and gpus == 0):
        raise ClusterError(f"cluster.gpus is {gpus:g}, but --device is {device}; leave one of them out")
    if gpus:
        cpus = params.cpus or 1.0
        return Cluster(ray, "cuda", Share(cpus, gpus, max(1, math.floor(cpus))), params.actors)
    cpus = params.cpus or min(threads, _most(nodes, "CPU")) or threads
    return Cluster(ray, "cpu", Share(cpus, 0.0, threads), params.actors)


def _most(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return max((node.get(resource, 0.0) for node in nodes), default=0.0)
