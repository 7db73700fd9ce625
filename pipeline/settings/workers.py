"""Ray actors that do items of work; the items of an actor that dies are done again by others.

Ray could restart an actor and repeat its calls by itself, but where a node is gone for good it would wait for ever. So
the items of a dead actor go to the others here, and a new actor joins them as soon as a node has room for it.
"""

import hashlib
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.settings.sections import ErcError

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
        """See `pipeline.settings.cluster.Cluster.work`."""
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
