"""cluster.engine: ray, on two worker nodes of this machine; one file, since a Ray takes fifteen seconds to start."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import pipeline.settings.workers
from fusion.ablate import Ablation, ablate
from fusion.cli import ablate_app
from fusion.errors import TrainingError
from fusion.params import EvaluateParams
from fusion.runs import RunFolder
from fusion.variants import read_variants
from pipeline.settings import Cluster, ClusterError, ClusterParams, ErcError, SettingsError, connect, read_section
from pipeline.settings.workers import Share
from pipeline.store import read_features
from tests.fusion.made import Made, write_made
from tests.nodes import TwoNodes, make_adder, make_nothing, two_nodes

PARAMS = """
model: {dim: 4, heads: 2, audio_frames: 4}
train: {seeds: [0, 1, 2], epochs: 2}
evaluate: {resamples: 50, permutations: 99}
ablations:
  no gate: {model.gate: false}
  more frames: {model.audio_frames: 6}
  audio withheld: {model.modalities: text}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def connected(nodes: TwoNodes) -> Iterator[Cluster]:
    params = ClusterParams(engine="ray", address=nodes.address)
    with connect(params, "auto", threads=1) as cluster:
        assert cluster
        yield cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_made(folder / "feats.h5", Made(conversations=(4, 3, 6), frames=(0, 8)))
    (folder / "params.yaml").write_text(PARAMS)
    return folder


def ablate_project(project: Path, folder: Path, cluster: Cluster | None, *overrides: str) -> Ablation:
    torch.set_num_threads(1)
    variants, features = read_variants(project / "params.yaml", overrides), read_features(project / "feats.h5")
    return ablate(features, variants, EvaluateParams(), folder, torch.device("cpu"), None if cluster else 1, cluster)


@pytest.fixture(scope="module")
def local(project: Path) -> Ablation:
    return ablate_project(project, project / "local", None)


def assert_same(found: Ablation, expected: Ablation) -> None:
    """To the last bit, in all but the time that it took."""
    assert found.results.keys() == expected.results.keys()
    for row, results in expected.results.items():
        for one, other in zip(found.results[row], results, strict=True):
            assert one.answers.tobytes() == other.answers.tobytes()
            rest = {"answers": None, "seconds": None}
            assert asdict(one) | rest == asdict(other) | rest


def test_items_are_done_by_actors_on_both_nodes_in_any_order(connected: Cluster) -> None:
    done = dict(connected.work(range(40), make_adder, connected.put(5), ahead=2))
    assert done == {item: item + 5 for item in range(40)}


def test_an_item_that_kills_its_actors_is_given_up_and_the_others_are_done(connected: Cluster) -> None:
    done = dict(connected.work([0, 1, -1, 2, 3], make_adder, 1, ahead=2))
    lost = done.pop(-1)
    assert done == {0: 1, 1: 2, 2: 3, 3: 4}
    assert isinstance(lost, ClusterError)
    assert str(lost).startswith("3 actors died at it, the last one: The actor is dead because its worker process")


def test_what_an_actor_cannot_make_is_told_with_its_node(connected: Cluster) -> None:
    with pytest.raises(ErcError, match=f"^node {os.uname().nodename}: no such folder$"):
        list(connected.work([0], make_nothing))


def test_another_version_on_a_node_is_refused(connected: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(pipeline.settings.workers.installed_here(), version="9.9", code="0123456789")
    monkeypatch.setattr(pipeline.settings.workers, "installed_here", lambda: here)
    message = r"node .* has erc-fusion 0\..*, this machine erc-fusion 9\.9 \(code 01234567\).*: install the same"
    with pytest.raises(ClusterError, match=message):
        list(connected.work([0], make_adder, 1))


def test_ablations_on_two_nodes_are_those_of_one_machine_and_a_run_that_fails_stops_no_other(
    connected: Cluster, project: Path, local: Ablation, tmp_path: Path
) -> None:
    wild = "{train.optimizer: adamw, train.learning_rate: 10, train.weight_decay: 10, train.epochs: 40}"
    (tmp_path / "params.yaml").write_text(PARAMS.replace("  no gate", f"  wild: {wild}\n  no gate"))
    (tmp_path / "feats.h5").symlink_to(project / "feats.h5")
    with pytest.raises(TrainingError, match=r"^row 'wild' of ablations: seed \d, .* \(and 2 more runs failed\); mend"):
        ablate_project(tmp_path, tmp_path / "runs", connected)
    assert len(list((tmp_path / "runs").iterdir())) == 4 * 3
    assert_same(ablate_project(project, tmp_path / "runs", None), local)  # they are there


def test_jobs_are_refused_beside_a_cluster(connected: Cluster, project: Path, tmp_path: Path) -> None:
    variants, features = read_variants(project / "params.yaml"), read_features(project / "feats.h5")
    with pytest.raises(TrainingError, match=r"--jobs 2: with cluster.engine 'ray', set cluster.actors"):
        ablate(features, variants, EvaluateParams(), tmp_path, torch.device("cpu"), 2, connected)


def kill_after(nodes: TwoNodes, calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, at whose call of this number a node dies."""
    count = 0

    def wrapped(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            nodes.kill_one()
        return function(*arguments)

    return wrapped


def test_a_node_killed_half_way_changes_no_ablation(
    nodes: TwoNodes, connected: Cluster, project: Path, local: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test that needs both nodes."""
    monkeypatch.setattr(RunFolder, "save", kill_after(nodes, 5, RunFolder.save))
    assert_same(ablate_project(project, tmp_path, connected), local)
    assert len(nodes.nodes) == 1


# without a Ray


def test_the_default_engine_connects_to_nothing() -> None:
    with connect(ClusterParams(), "auto", 1) as cluster:
        assert cluster is None


def test_without_ray_installed_it_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # its import fails then
    arguments = ["--features", project / "feats.h5", "--params", project / "params.yaml", "--set", "cluster.engine=ray"]
    done = CliRunner().invoke(ablate_app, list(map(str, arguments)))
    assert done.exit_code == 2
    assert done.stderr == (
        "error: cluster.engine is 'ray', but Ray is not installed: pip install 'erc-fusion[cluster]', "
        "or set cluster.engine to local\n"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine=slurm", "'cluster.engine' is 'slurm': input should be 'local' or 'ray'"),
        ("address=ray://head:10001", "the Ray client is not supported: run the command on a node of the cluster"),
        ("gpus=1.5", "'cluster.gpus' is 1.5: must be a share of one GPU, such as 0.5, or a whole number"),
        ("actors=0", "'cluster.actors' is 0: input should be greater than or equal to 1"),
    ],
)
def test_what_is_no_cluster_is_refused(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_section(None, "cluster", ClusterParams, [f"cluster.{override}"])


def test_an_address_where_nobody_answers_is_told_at_once() -> None:
    params = ClusterParams(engine="ray", address="127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"no Ray answers at 127.0.0.1:1"), connect(params, "auto", 1):
        pass


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "actors"),
    [
        (2, 0, {"CPU": 7.0}, 3),
        (0.1, 0, {"CPU": 1.0}, 10),
        (1, 0, {}, 0),
        (1, 1, {"CPU": 64.0, "GPU": 8.0}, 8),
        (1, 1, {"CPU": 64.0}, 0),
        (1, 0.4, {"CPU": 64.0, "GPU": 2.0}, 4),
        (1, 2, {"CPU": 64.0, "GPU": 5.0}, 2),
        (16, 1, {"CPU": 64.0, "GPU": 8.0}, 4),
    ],
)
def test_a_node_has_room_for_so_many_actors(cpus: float, gpus: float, node: dict[str, float], actors: int) -> None:
    assert Share(cpus, gpus, 1).room(node) == actors
