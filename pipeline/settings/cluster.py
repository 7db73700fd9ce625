"""Section `cluster`: whether the work is done here or on a Ray cluster, and the connection to it.

    with connect(params, device, threads) as cluster:  # None: the engine is `local`
        for item, value in cluster.work(items, make, *arguments): ...

Ray is imported here and in `workers` alone, when it is asked for. Nothing of this section changes a result.
"""

import importlib
import io
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TextIO, TypeVar

from pydantic import Field, field_validator

from pipeline.settings.sections import Section
from pipeline.settings.workers import ClusterError, Pool, Share

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
            f"no Ray answers at {address} ({error}); start one with ray start --head, or mend cluster.address"
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
