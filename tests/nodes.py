"""A Ray of a head without room for work and two worker nodes, all on this machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE_BYTES = 80 * 2**20  # /dev/shm may be small
NODE = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_log_monitor": False}
CONFIG = {
    # a dead node is noticed by its silence: a second of it
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 5,
    "worker_niceness": 0,  # Ray's own is 15: on a busy machine its actors would hardly get a turn
}


class TwoNodes:
    """The cluster; room for one actor of one CPU on each node."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.address = cluster.address
        self.nodes = [cluster.add_node(**NODE) for _ in range(2)]

    def kill_one(self) -> None:
        """End a node that is at work, with all of its processes, as a power cut does."""
        _, raylet = self._busy_actor()
        (node,) = [node for node in self.nodes if _raylet(node) == raylet]
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_an_actor(self) -> None:
        """End the process of an actor that is at work, as the kernel does where memory runs out."""
        pid, _ = self._busy_actor()
        os.kill(pid, signal.SIGKILL)

    def _busy_actor(self) -> tuple[int, int]:
        """Process numbers of an actor and of its node, as soon as there is one."""
        raylets = {_raylet(node) for node in self.nodes}
        while True:
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    title = (path / "cmdline").read_bytes()
                except OSError:
                    continue  # gone meanwhile
                if parent in raylets and title.startswith(b"ray::Actor.work"):
                    return int(path.name), parent
            time.sleep(0.001)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """The cluster, while the context lasts."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": CONFIG}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield TwoNodes(cluster)
    finally:
        cluster.shutdown()


# what actors are asked to make, in tests of the actors themselves


def make_adder(number: int) -> Callable[[int], int]:
    """A function that adds `number`, slowly; it ends its process at -1."""

    def add(item: int) -> int:
        if item == -1:
            os._exit(1)
        time.sleep(0.01)
        return item + number

    return add


def make_nothing() -> Callable[[int], int]:
    """It cannot."""
    from pipeline.errors import ErcError

    raise ErcError("no such folder")
