"""cluster.engine: ray, on two worker nodes of this machine; one file, since a Ray takes fifteen seconds to start."""

import io
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import pipeline.settings.cluster
from fusion.ablation import ablate, read_variants
from fusion.ablation.single_run import RunFolder
from fusion.ablation.study import Ablation
from fusion.cli import ablate_app
from fusion.errors import TrainingError
from fusion.params import EvaluateParams
from pipeline.encoders import batches_under_budget, load_speech_encoder
from pipeline.errors import DataError, EncoderError, ErcError
from pipeline.extraction import Recordings, Work, extract_audio, extract_audio_on
from pipeline.extraction.cluster import Asked, Pieces, RayEngine, Transcripts, ask_an_actor, make_encoder
from pipeline.extraction.engine import LocalEngine
from pipeline.extraction.progress import Unit
from pipeline.extraction.stage import plan_clips
from pipeline.manifest import Source, read_manifest, read_sources, write_manifest
from pipeline.media import encoder_samples
from pipeline.params import AudioParams, TextParams
from pipeline.settings import Cluster, ClusterError, ClusterParams, SettingsError, connect, read_section
from pipeline.settings.cluster import Share, WithoutRay
from pipeline.store import Identity, PartLayout, SlotWriter, read_features
from tests.demo import DEMO, conversations, prepared
from tests.fusion.made import Made, write_made
from tests.nodes import TwoNodes, make_adder, make_nothing, two_nodes
from tests.pipeline.tight import Tight, told

ROOT = Path(__file__).parents[1]
PARAMS = """
model: {dim: 4, heads: 2, audio_frames: 4}
train: {seeds: [0, 1, 2], epochs: 2}
evaluate: {resamples: 50, permutations: 99}
ablations:
  no gate: {model.hbaf.gate: false}
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


@pytest.mark.soak
def test_items_are_done_by_actors_on_both_nodes_in_any_order(connected: Cluster) -> None:
    done = dict(connected.work(range(40), make_adder, connected.put(5), ahead=2))
    assert done == {item: item + 5 for item in range(40)}


@pytest.mark.soak
def test_an_item_that_kills_its_actors_is_given_up_and_the_others_are_done(connected: Cluster) -> None:
    done = dict(connected.work([0, 1, -1, 2, 3], make_adder, 1, ahead=2))
    lost = done.pop(-1)
    assert done == {0: 1, 1: 2, 2: 3, 3: 4}
    assert isinstance(lost, ClusterError)
    assert str(lost).startswith("3 actors died at it, the last one: The actor is dead because its worker process")


@pytest.mark.soak
def test_what_an_actor_cannot_make_is_told_with_its_node(connected: Cluster) -> None:
    with pytest.raises(ErcError, match=f"^node {os.uname().nodename}: no such folder$"):
        list(connected.work([0], make_nothing))


@pytest.mark.soak
def test_actors_find_a_model_that_plugs_in(
    nodes: TwoNodes, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    (tmp_path / "plugged.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    features, small = read_features(project / "feats.h5"), ["model.dim=4", "model.heads=2", "train.epochs=2"]
    variants = read_variants(None, ["model.name=plugged:Gated", *small])
    train = partial(ablate, features, variants, EvaluateParams())
    with connect(ClusterParams(engine="ray", address=nodes.address), "auto", threads=1) as cluster:
        found = train(tmp_path / "ray", torch.device("cpu"), None, cluster)
    assert_same(found, train(tmp_path / "here", torch.device("cpu"), 1))


@pytest.mark.soak
def test_another_version_on_a_node_is_refused(connected: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(pipeline.settings.cluster.installed_here(), version="9.9", code="0123456789")
    monkeypatch.setattr(pipeline.settings.cluster, "installed_here", lambda: here)
    message = r"node .* has erc-fusion 0\..*, this machine erc-fusion 9\.9 \(code 01234567\).*: install the same"
    with pytest.raises(ClusterError, match=message):
        list(connected.work([0], make_adder, 1))


@pytest.mark.soak
def test_jobs_are_refused_beside_a_cluster(connected: Cluster, project: Path, tmp_path: Path) -> None:
    variants, features = read_variants(project / "params.yaml"), read_features(project / "feats.h5")
    with pytest.raises(TrainingError, match=r"--jobs 2: with cluster.engine 'ray', set cluster.actors"):
        ablate(features, variants, EvaluateParams(), tmp_path, torch.device("cpu"), 2, connected)


def before_call(number: int, event: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, before whose call of this number an `event` happens."""
    calls = itertools.count(1)

    def wrapped(*arguments: Any) -> Any:
        if next(calls) == number:
            event()
        return function(*arguments)

    return wrapped


@pytest.mark.soak
def test_ablations_on_two_nodes_are_those_of_one_machine_even_if_an_actor_dies_half_way_and_a_run_fails(
    nodes: TwoNodes,
    connected: Cluster,
    project: Path,
    local: Ablation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wild = "{train.optimizer: adamw, train.learning_rate: 10, train.weight_decay: 10, train.epochs: 40}"
    (tmp_path / "params.yaml").write_text(PARAMS.replace("  no gate", f"  wild: {wild}\n  no gate"))
    (tmp_path / "feats.h5").symlink_to(project / "feats.h5")
    monkeypatch.setattr(RunFolder, "save", before_call(5, nodes.kill_an_actor, RunFolder.save))
    with pytest.raises(TrainingError, match=r"^row 'wild' of ablations: seed \d, .* \(and 2 more runs failed\); fix"):
        ablate_project(tmp_path, tmp_path / "runs", connected)
    assert caplog.text.count("an actor of the Ray cluster died, what it was at is done again") == 1
    assert len(list((tmp_path / "runs").iterdir())) == 4 * 3
    assert_same(ablate_project(project, tmp_path / "runs", None), local)  # nothing is left to train


# extraction

AUDIO = AudioParams(batch=10.0, precision="float32", dtype="float32")
TEXT = TextParams(batch=100, precision="float32", dtype="float32")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    every_eighth = sorted(name for names in conversations().values() for name in names)[::8]
    write_manifest(folder / "manifest.jsonl", prepared(every_eighth, folder))
    return folder / "manifest.jsonl"


def test_transcripts_encoded_by_an_actor_are_the_rows_of_one_machine(manifest: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = Transcripts(read_manifest(manifest), TEXT)
    work = source.plan("cpu", tmp_path)
    batches = batches_under_budget(work.lengths, work.budget)[:5]
    encode = make_encoder(source, work.layout, "cpu", 1)
    for batch, expected in zip(batches, work.engine.run(batches), strict=True):
        found = encode(Asked(batch, Pieces()))
        assert [rows.tobytes() for rows in found.rows] == [rows.tobytes() for rows in expected.rows]


@dataclass
class Waves:
    """Stands for `Recordings`: clips of noise, which need no decoder."""

    utterances: list[Source]

    def plan(self, device: str, scratch: Path) -> Work:
        def load(index: int) -> torch.Tensor:
            samples = encoder_samples(self.utterances[index], encoder.sample_rate)
            return torch.randn(samples, generator=torch.Generator().manual_seed(index))

        encoder = load_speech_encoder(AUDIO, device)
        return plan_clips(self.utterances, encoder, AUDIO, "downmix", load)


@pytest.mark.parametrize("cores", [1, 3])
def test_clips_encoded_by_an_actor_are_the_rows_of_one_machine_whatever_the_cores(
    manifest: Path, tmp_path: Path, cores: int
) -> None:
    """Several batches at a time, as an actor is asked for them."""
    before = torch.get_num_threads()
    source = Waves(read_sources(manifest, "audio"))
    work = source.plan("cpu", tmp_path)
    batches = batches_under_budget(work.lengths, 16_000 * 5)[:6]
    expected = list(work.engine.run(batches))
    encode = make_encoder(source, work.layout, "cpu", cores)  # type: ignore[arg-type]
    asked = [Asked(batch, Pieces()) for batch in batches]
    try:
        with ThreadPoolExecutor(cores + 1) as threads:
            for found, one in zip(threads.map(encode, asked), expected, strict=True):
                assert [rows.tobytes() for rows in found.rows] == [rows.tobytes() for rows in one.rows]
    finally:
        torch.set_num_threads(before)


# what an actor checks before it encodes


def recordings(manifest: Path, root: Path = DEMO, params: AudioParams = AUDIO) -> Recordings:
    return Recordings(read_manifest(manifest)[:3], params, root, "downmix")


def test_a_node_that_does_not_see_the_recordings_is_told(manifest: Path, tmp_path: Path) -> None:
    expected = recordings(manifest).plan("cpu", tmp_path).layout
    with pytest.raises(
        DataError, match=r"not the recordings that the command sees: /nowhere/.* is not there; every no"
    ):
        make_encoder(recordings(manifest, Path("/nowhere")), expected, "cpu", 1)


def test_a_node_with_another_encoder_is_told(manifest: Path, tmp_path: Path, stable_speech_folder: Path) -> None:
    expected = recordings(manifest).plan("cpu", tmp_path).layout
    other = AUDIO.model_copy(update={"encoder": str(stable_speech_folder)})
    with pytest.raises(EncoderError, match="the encoder has model layer there, and tiny where the command runs"):
        make_encoder(recordings(manifest, params=other), expected, "cpu", 1)


def test_an_actor_has_the_threads_of_the_driver_and_the_pieces_of_the_run(manifest: Path, tmp_path: Path) -> None:
    source = Transcripts(read_manifest(manifest)[:3], TEXT)
    encode = make_encoder(source, source.plan("cpu", tmp_path).layout, "cpu", 2)
    torch.set_num_threads(1)
    encoded = encode(Asked([0, 1], Pieces(3)))
    assert (torch.get_num_threads(), encoded.pieces, list(encoded.indices)) == (2, 3, [0, 1])
    torch.set_num_threads(1)


class Here(Cluster):
    """A cluster whose one actor is this process."""

    def work(self, items: Any, make: Any, *arguments: Any, ahead: int = 1) -> Iterator[tuple[Any, Any]]:
        do = make(*arguments)
        return ((item, do(item)) for item in items)


class Copying(Cluster):
    """A cluster of two actors in this process, which get copies as from Ray; one dies half way and is replaced."""

    def put(self, value: Any) -> Any:
        return value

    def work(self, items: Any, make: Any, *arguments: Any, ahead: int = 1) -> Iterator[tuple[Any, Any]]:
        actors = [make(*arguments), make(*arguments)]
        for number, item in enumerate(items):
            if number == len(items) // 2:
                actors[0] = make(*arguments)
            yield item, actors[number % 2](pickle.loads(pickle.dumps(item)))


@dataclass
class TightSource:
    """Stands for `Recordings`; every actor has an encoder of its own."""

    layout: PartLayout
    encoders: list[Tight]

    def plan(self, device: str, scratch: Path) -> Work:
        self.encoders.append(Tight(largest=2))
        engine = LocalEngine(int, self.encoders[-1].start, str)
        return Work(self.layout, self.layout.rows, Unit("h", "h", 1, digits=0), budget=5, found=True, engine=engine)


@pytest.mark.parametrize("noted", [1, 2, 8])
def test_what_one_actor_came_to_the_others_and_those_that_follow_know(noted: int) -> None:
    batches = [[5 * number + place for place in range(5)] for number in range(8)]
    source = TightSource(PartLayout([str(n) for n in range(40)], [1] * 40, (3,), "float32", Identity({}), ""), [])
    cluster = Copying(ray=None, device="cpu", share=Share(cpus=1, gpus=0, threads=1), actors=2)
    engine = RayEngine(cluster, source, source.layout)  # type: ignore[arg-type]
    engine.cut_into(noted)
    found, expected = list(engine.run(batches)), told(max(noted, 4), batches)
    for one, other in zip(found, expected, strict=True):
        assert one.pieces == other.pieces
        assert [rows.tobytes() for rows in one.rows] == [rows.tobytes() for rows in other.rows]
    first, second, replacing = source.encoders
    assert first.sizes[:3] == {1: [5, 2, 3], 2: [2, 3, 1], 8: [1, 1, 1]}[noted]
    assert max(second.sizes + replacing.sizes) <= 2  # they never ran out


def test_actors_that_share_a_device_share_its_memory(manifest: Path, tmp_path: Path) -> None:
    source = Transcripts(read_manifest(manifest)[:3], TextParams())
    cluster = Here(ray=None, device="cpu", share=Share(cpus=1, gpus=0.5, threads=1), actors=None)
    assert ask_an_actor(cluster, source) == source.plan("cpu", tmp_path).budget // 2


@pytest.mark.soak
def test_recordings_are_the_bytes_of_one_machine_even_if_a_node_dies_half_way(
    nodes: TwoNodes,
    connected: Cluster,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last test that needs both nodes."""
    torch.set_num_threads(1)
    extract_audio(manifest, tmp_path / "local.h5", AUDIO, DEMO, "downmix", "cpu")
    monkeypatch.setattr(SlotWriter, "write", before_call(10, nodes.kill_one, SlotWriter.write))
    killed = extract_audio_on(connected, manifest, tmp_path / "killed.h5", AUDIO, DEMO, "downmix")
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()
    assert killed.encoded == killed.utterances
    assert (
        "an actor of the Ray cluster died, what it was at is done again: The actor died because its node" in caplog.text
    )


# without a Ray


def test_where_the_work_is_done_runs_no_stage_again() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    listed = [name for stage in stages.values() for name in stage.get("params", [])]
    assert listed
    assert not [name for name in listed if name.split(".")[0] == "cluster"]


def test_the_default_engine_connects_to_nothing() -> None:
    with connect(ClusterParams(), "auto", 1) as cluster:
        assert cluster is None


def test_without_ray_installed_it_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # its import fails then
    arguments = ["--features", project / "feats.h5", "--params", project / "params.yaml", "--set", "cluster.engine=ray"]
    done = CliRunner().invoke(ablate_app, list(map(str, arguments)))
    assert done.exit_code == 2
    assert done.stderr == (
        "error: cluster.engine is 'ray', but Ray is not installed: pip install 'path/to/erc-fusion[cluster]', "
        "or set cluster.engine to local\n"
    )


def test_a_broken_ray_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('a library of it is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    message = r"Ray cannot be imported \(a library of it is missing\): pip install"
    with pytest.raises(ClusterError, match=message), connect(ClusterParams(engine="ray"), "auto", 1):
        pass


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


def test_a_client_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with (
        pytest.raises(ClusterError, match=r"RAY_ADDRESS is 'ray://head:10001': the Ray client is not supported"),
        connect(ClusterParams(engine="ray"), "auto", 1),
    ):
        pass


def test_what_rays_threads_print_is_left_out() -> None:
    shown = io.StringIO()
    with redirect_stdout(WithoutRay(shown)):
        thread = Thread(target=print, args=["a worker died"], name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("audio.h5: done")
    assert shown.getvalue() == "audio.h5: done\n"


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
