"""`benchmarks/extraction.py` at toy size: what it prints and writes, not how fast."""

import doctest
import importlib
import json
import re
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders import TINY_SPEECH, TINY_TEXT
from pipeline.settings.precision import built_for_bfloat16

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RATE = 24_000


@pytest.fixture(scope="module")
def extraction() -> Any:
    """The command, which finds its parts beside itself."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("extraction")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name three recordings, and a table of four lengths, the first shorter than a frame."""
    root = tmp_path_factory.mktemp("corpora")
    (root / "wav").mkdir()
    for number in range(3):
        with wave.open(str(root / "wav" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            noise = np.random.default_rng(number).normal(0, 3_000, RATE // 2 + 1_000 * number)
            file.writeframes(noise.astype("<i2").tobytes())
    lengths = [1_024, 20 * 1_024, 30 * 1_024, 25_000]
    lines = [f"train,0,{number},{samples},48000\n" for number, samples in enumerate(lengths)]
    (root / "clips.csv").write_text("split,dialogue,utterance,samples,sample_rate\n" + "".join(lines))
    return ["--nemo", str(root), "--meld", str(root / "clips.csv")]


@pytest.fixture(scope="module")
def run(
    extraction: Any, corpora: list[str], speech_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """Results and tables of a run of all parts."""
    work = tmp_path_factory.mktemp("benchmark")
    sizes = ["--repeats", "1", "--seconds", "0", "--product-seconds", "0.001", "--utterances", "9"]
    growth = ["--growth-seconds", "0", "--growth-encoder", str(speech_folder)]
    given = ["--work", str(work), "--output", str(work / "results.json"), "--device", "cpu"]
    runs = importlib.import_module("measures.extraction_runs")
    capture = pytest.MonkeyPatch()
    capture.setattr(runs, "in_own_process", runs.run)  # processes take seconds to start; one is tested below
    printed: list[str] = []
    capture.setattr("builtins.print", lambda *values, file=None, **_: printed.extend([] if file else values))
    try:
        extraction.main([*given, *sizes, *growth, *corpora, "--encoder", str(speech_folder)])
    finally:
        capture.undo()
    return json.loads((work / "results.json").read_text()), printed[-1]


@pytest.mark.soak
def test_every_variant_is_timed_on_every_corpus(run: tuple[dict[str, Any], str]) -> None:
    results, _ = run
    native = built_for_bfloat16(torch.device("cpu"))
    expected = ["single", "naive", "float32"] + ["bfloat16"] * native
    assert [corpus["corpus"] for corpus in results["encoding"]] == ["nemo", "meld"]
    for corpus in results["encoding"]:
        assert [variant["name"] for variant in corpus["variants"]] == expected
        for variant in corpus["variants"]:
            assert variant["seconds"]["median"] > 0
            assert variant["floor_share"] == pytest.approx(1 / variant["times_floor"]["median"])
        assert corpus["variants"][0]["times_single"]["median"] == 1
        assert corpus["variants"][0]["padding_share"] == pytest.approx(0)


@pytest.mark.soak
def test_exact_features_agree_with_single_clips_and_naive_ones_do_not(run: tuple[dict[str, Any], str]) -> None:
    exact, naive, reduced = run[0]["agreement"]
    assert exact["largest_difference"] < 1e-4
    assert naive["largest_difference"] > 0.01
    assert 0.99 < reduced["lowest_cosine"] < 1


@pytest.mark.soak
def test_files_are_extracted_and_decoding_is_part_of_it(run: tuple[dict[str, Any], str]) -> None:
    nemo, meld = run[0]["files"]
    assert (nemo["container"], meld["container"]) == ("flac", "mp4")
    for found in (nemo, meld):
        assert found["seconds"]["median"] > 0
        assert found["decode_share"] > 0
        assert found["peak_bytes"] > 2**20


@pytest.mark.soak
def test_growth_holds_a_corpus_to_one_four_times_its_size(run: tuple[dict[str, Any], str]) -> None:
    growth = run[0]["growth"]
    assert (growth["growth"], growth["clips"]) == (4, 4)
    assert growth["peak_ratio"] == growth["grown_peak_bytes"] / growth["peak_bytes"]


@pytest.mark.soak
def test_every_layout_gives_back_what_was_written(run: tuple[dict[str, Any], str]) -> None:
    store = run[0]["store"]
    assert [layout["name"] for layout in store["layouts"]] == ["copy", "store", "gzip", "data sets", "npy"]
    copy, own, *others = store["layouts"]
    assert copy["write_seconds"] is None
    assert own["read_to_store"]["median"] == own["write_to_store"]["median"] == 1
    for layout in [own, *others]:
        assert layout["write_seconds"]["median"] > 0
        assert layout["bytes"] > 0.8 * store["bytes"]


@pytest.mark.soak
def test_tables_are_well_formed(run: tuple[dict[str, Any], str]) -> None:
    tables = [lines.split("\n") for lines in run[1].strip().split("\n\n") if lines.startswith("|")]
    assert len(tables) == 5  # the encoder on two corpora, agreement, files, store
    for header, rule, *rows in tables:
        assert rows
        assert re.fullmatch(r"\| ---( \| ---:)+ \|", rule)
        assert {row.count("|") for row in [rule, *rows]} == {header.count("|")}


@pytest.mark.soak
def test_a_process_of_its_own_does_not_count_what_this_one_holds(extraction: Any, tmp_path: Path) -> None:
    corpora, machine, runs = (
        importlib.import_module(f"measures.{n}") for n in ("corpora", "machine", "extraction_runs")
    )
    corpus = corpora.Corpus("one", "one clip", "flac", "downmix", [corpora.Source(16_000, 16_000)])
    params = importlib.import_module("measures.encoding").audio_params("log-mel", "float32")
    job = runs.Job(corpora.write_release(corpus, tmp_path), params, "downmix", "cpu")
    held = np.ones(2**29, np.uint8)
    found = runs.in_own_process(job)
    assert found.seconds > 0
    assert found.decode_seconds > 0
    assert found.peak_bytes < machine.process_peak() - len(held) // 2


@pytest.mark.parametrize("name", ["corpora", "encoding", "report", "timing"])
def test_examples_hold(extraction: Any, name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"measures.{name}"))
    assert found.attempted
    assert not found.failed


def test_a_store_that_gives_other_values_is_told(extraction: Any, tmp_path: Path) -> None:
    storing = importlib.import_module("measures.storing")
    features = [np.ones((2, 3), np.float16), np.zeros((1, 3), np.float16)]
    target = np.concatenate([features[1], features[0]])
    storing.check(features, [1, 0], target)
    with pytest.raises(SystemExit, match="utterance 0"):
        storing.check(features, [1, 0], target * 2)


def test_a_naive_batch_that_exceeds_the_memory_is_halved_and_counted(extraction: Any, speech_folder: Path) -> None:
    encoding = importlib.import_module("measures.encoding")

    class Small(encoding.Plain):
        def states(self, clips: list[torch.Tensor]) -> np.ndarray:
            if len(clips) > 2:
                raise torch.OutOfMemoryError
            return super().states(clips)

    small = Small(str(speech_folder), "cpu")
    clips = [torch.randn(samples) for samples in (800, 1_600, 2_400, 3_200, 300)]
    frames = [len(array) for array in small.encode(clips)]
    assert frames == [2, 4, 7, 9, 1]
    assert small.out_of_memory == 2  # of five clips, then of three


def test_a_sample_has_about_the_seconds_asked_for_and_the_mean_length_of_all(extraction: Any) -> None:
    corpora = importlib.import_module("measures.corpora")
    random = np.random.default_rng(0)
    sources = [corpora.Source(int(samples), 1_000) for samples in random.lognormal(8, 0.7, 5_000)]
    chosen = corpora.sampled(sources, seconds=500)
    assert sum(source.seconds for source in chosen) == pytest.approx(500, rel=0.03)


def test_memory_that_a_block_takes_and_gives_back_is_measured(extraction: Any) -> None:
    machine = importlib.import_module("measures.machine")
    with machine.peak_memory("cpu") as peak:
        np.ones(64 * 2**20, np.uint8).sum()
    assert peak.bytes is None or 60 * 2**20 < peak.bytes < 90 * 2**20
    with machine.peak_memory("cpu") as peak:
        np.ones(2**20, np.uint8).sum()
    assert peak.bytes is None or peak.bytes < 30 * 2**20


def test_nothing_to_encode_is_told(extraction: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neither --nemo nor --meld"):
        extraction.main(["--work", str(tmp_path), "--nemo", str(tmp_path / "no"), "--meld", str(tmp_path / "no.csv")])


@pytest.mark.soak
def test_a_turn_is_timed_beside_its_encoders(
    extraction: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("latency").main(tmp_path, 0.5, 2, TINY_SPEECH, TINY_TEXT)
    lines = capsys.readouterr().out.splitlines()
    line = r"a turn [1-9]\d* ms; both encoders alone [1-9]\d* ms; floor of the speech encoder \d+ ms; "
    line += r"a turn of another length than those before [1-9]\d* ms"
    assert len(lines) == 2 + built_for_bfloat16(torch.device("cpu"))
    assert all(re.fullmatch(f"(float32|bfloat16): {line}", one) for one in lines[1:])
