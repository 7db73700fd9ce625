"""fusion-ablate: each run once, however often it is interrupted and however many work side by side."""

import csv
import io
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fusion.ablation.single_run
from fusion.ablation import ablate, compare, headline, read_variants, write_table
from fusion.ablation.comparison import Comparison
from fusion.ablation.single_run import Result
from fusion.ablation.study import Ablation
from fusion.ablation.table_files import check_table, describe_run, table_csv, table_md, table_tex
from fusion.ablation.variants import Variant
from fusion.cli import ablate_app
from fusion.data import Resident, load_split, withhold
from fusion.errors import FeatureError, OutputError, TrainingError
from fusion.inference import predict_heads, score_answers
from fusion.objective import holm
from fusion.objective.tasks import LabelTask
from fusion.params import EvaluateParams
from fusion.tables import escape_latex
from pipeline.settings import SettingsError
from pipeline.store import Features, read_features
from tests.fusion.batches import tensors_in
from tests.fusion.made import Made, make_features, write_made
from tests.fusion.test_fusion_cli import run

PARAMS = """
model: {dim: 4, heads: 2, audio_frames: 4}
train: {seeds: [0, 1], epochs: 1}
evaluate: {resamples: 50, permutations: 99}
ablations:
  no gate: {model.hbaf.gate: false}
  plain: {base: no gate, model.hbaf.levels: raw}
  audio withheld: {model.modalities: text}
"""
SMALL = Made(conversations=(4, 3, 6), frames=(0, 5))
CPU = torch.device("cpu")
SECTION = EvaluateParams(resamples=50, permutations=99)


def make_variants(folder: Path, content: str = PARAMS, *overrides: str) -> list[Variant]:
    (folder / "params.yaml").write_text(content, encoding="utf-8")
    return read_variants(folder / "params.yaml", overrides)


def ablate_made(folder: Path, jobs: int, overrides: Sequence[str] = ()) -> None:
    """The command's work, in this process or in one that is about to be killed."""
    torch.set_num_threads(1)
    variants = read_variants(folder / "params.yaml", overrides)
    done = ablate(read_features(folder / "feats.h5"), variants, SECTION, folder / "out" / "ablations", CPU, jobs)
    write_table(compare(done), folder / "out", None)


def without_seconds(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def kept(folder: Path) -> dict[str, int]:
    """The results in `folder`, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features, parameters, and the table that one process made."""
    folder = tmp_path_factory.mktemp("done")
    write_made(folder / "feats.h5", SMALL)
    make_variants(folder)
    ablate_made(folder, jobs=1)
    return folder


def test_every_row_and_seed_is_kept_and_the_tables_are_written(done: Path) -> None:
    names = {"ablations", *(f"ablations.{kind}" for kind in ("csv", "md", "tex", "svg", "png", "json"))}
    assert {path.name for path in (done / "out").iterdir()} == names
    assert len(kept(done / "out" / "ablations")) == 4 * 2
    assert len(list((done / "out" / "ablations").iterdir())) == 4 * 2  # no state is left


@pytest.mark.soak
def test_processes_side_by_side_find_the_same_numbers(done: Path, tmp_path: Path) -> None:
    write_made(tmp_path / "feats.h5", SMALL)
    make_variants(tmp_path)
    ablate_made(tmp_path, jobs=3)
    assert without_seconds(tmp_path / "out" / "ablations.csv") == without_seconds(done / "out" / "ablations.csv")
    assert kept(tmp_path / "out" / "ablations").keys() == kept(done / "out" / "ablations").keys()
    for name in ("ablations.tex", "ablations.svg", "ablations.png"):
        assert (tmp_path / "out" / name).read_bytes() == (done / "out" / name).read_bytes()


def test_a_finished_run_is_not_repeated_when_a_set_comes_along(done: Path, tmp_path: Path) -> None:
    features, folder = read_features(done / "feats.h5"), tmp_path / "runs"
    one_seed = "train.seeds=[0]"
    ablate(features, make_variants(tmp_path, PARAMS, one_seed)[:2], SECTION, folder, CPU, 1)
    before = kept(folder)
    more = PARAMS + "  more: {model.dim: 2, model.heads: 1}\n"
    ablate(features, make_variants(tmp_path, more, one_seed), SECTION, folder, CPU, 1)
    after = kept(folder)
    assert len(after) == 5
    assert len(before) == 2
    assert before.items() <= after.items()


def test_rows_with_the_same_parameters_share_a_run(done: Path, tmp_path: Path) -> None:
    content = PARAMS + "  again: {model.hbaf.gate: false, model.hbaf.levels: raw}\n"  # plain, compared with base
    runs = Path(shutil.copytree(done / "out" / "ablations", tmp_path / "runs"))
    result = ablate(read_features(done / "feats.h5"), make_variants(tmp_path, content), SECTION, runs, CPU, 1)
    assert len(kept(runs)) == 4 * 2
    np.testing.assert_array_equal(result.results["again"][1].answers, result.results["plain"][1].answers)


def test_a_damaged_result_is_done_again(done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, variants = read_features(done / "feats.h5"), make_variants(tmp_path)[:1]
    first = ablate(features, variants, SECTION, tmp_path / "runs", CPU, 1)
    for path, content in zip((tmp_path / "runs").iterdir(), (b"", b"PK garbage"), strict=True):
        path.write_bytes(content)
    again = ablate(features, variants, SECTION, tmp_path / "runs", CPU, 1)
    assert caplog.text.count("damaged (") == 2
    np.testing.assert_array_equal(first.results["base"][0].answers, again.results["base"][0].answers)


def test_a_run_is_the_training_that_fusion_train_does(done: Path) -> None:
    """Probabilities of the test split, against training and predicting by hand."""
    features, (base, *_) = read_features(done / "feats.h5"), read_variants(done / "params.yaml")
    given = {"modalities": base.recipe.model.modalities, "audio_frames": base.recipe.model.audio_frames}
    train, validation, test = (load_split(features, name, **given) for name in ("train", "validation", "test"))
    fit = fusion.ablation.single_run.fit(train, validation, base.recipe, 1, classes=3)
    table = ablate(features, [base], SECTION, done / "out" / "ablations", CPU, 1)
    result = table.results["base"][1]
    assert fit.calibration
    said = predict_heads(fit.model, test, LabelTask(3), fit.calibration.temperature)["fused"]
    np.testing.assert_array_equal(result.answers, said)
    assert result.validation == fit.validation["fused"]
    assert result.parameters == sum(weights.numel() for weights in fit.model.parameters())


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # gone meanwhile
        found += [int(path.parent.name)] if int(fields[1]) == pid else []
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.soak
def test_killed_it_goes_on_and_repeats_no_finished_run(done: Path, tmp_path: Path) -> None:
    write_made(tmp_path / "feats.h5", SMALL)
    make_variants(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=ablate_made, args=(tmp_path, 2))
    process.start()
    assert process.pid
    while len(kept(tmp_path / "out" / "ablations")) < 3 and process.is_alive():
        time.sleep(0.002)
    workers = children(process.pid)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))  # a killed parent leaves none behind
    before = kept(tmp_path / "out" / "ablations")
    assert 3 <= len(before) < 8
    assert not (tmp_path / "out" / "ablations.csv").exists()
    ablate_made(tmp_path, jobs=1)
    assert before.items() <= kept(tmp_path / "out" / "ablations").items()
    assert without_seconds(tmp_path / "out" / "ablations.csv") == without_seconds(done / "out" / "ablations.csv")
    for name in ("ablations.tex", "ablations.svg"):
        assert (tmp_path / "out" / name).read_bytes() == (done / "out" / name).read_bytes()


@pytest.mark.soak
def test_an_interrupted_run_goes_on_with_its_state_and_has_no_seconds(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion.ablation.single_run, "KEEP_SECONDS", 0.0)
    features, variants = read_features(done / "feats.h5"), make_variants(tmp_path, PARAMS, "train.epochs=3")[:1]
    whole = ablate(features, variants, SECTION, tmp_path / "whole", CPU, 1).results["base"][0]
    original = fusion.ablation.single_run.StateFile.save

    def stop_after_two(self: Any, state: Any) -> None:
        original(self, state)
        if len(state.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fusion.ablation.single_run.StateFile, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        ablate(features, variants, SECTION, tmp_path / "runs", CPU, 1)
    monkeypatch.setattr(fusion.ablation.single_run.StateFile, "save", original)
    assert [path.suffix for path in (tmp_path / "runs").iterdir()] == [".state"]
    resumed = ablate(features, variants, SECTION, tmp_path / "runs", CPU, 1).results["base"][0]
    np.testing.assert_array_equal(resumed.answers, whole.answers)
    assert resumed.seconds is None
    assert whole.seconds


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.sampled(2)
def test_a_failing_run_is_named_and_the_others_are_done(done: Path, tmp_path: Path, jobs: int) -> None:
    wild = "{train.optimizer: adamw, train.learning_rate: 10, train.weight_decay: 10, train.epochs: 40}"
    variants = make_variants(tmp_path, f"{PARAMS.split('ablations')[0]}ablations:\n  wild: {wild}\n")
    message = r"row 'wild' of ablations: seed \d, epoch \d+: the loss is .* \(and 1 more runs failed\); fix or take out"
    with pytest.raises(TrainingError, match=message):
        ablate(read_features(done / "feats.h5"), variants[::-1], SECTION, tmp_path / "runs", CPU, jobs)
    assert len(kept(tmp_path / "runs")) == 2


def test_what_a_model_refuses_shows_before_the_first_run(done: Path, tmp_path: Path) -> None:
    content = PARAMS + "  nothing: {model.hbaf.self_attention: false, model.hbaf.cross_attention: false}\n"
    with pytest.raises(SettingsError, match=r"'ablations.nothing': 'model.hbaf'.*both false: nothing is left to fuse"):
        ablate(read_features(done / "feats.h5"), make_variants(tmp_path, content), SECTION, tmp_path / "runs", CPU, 1)
    assert not (tmp_path / "runs").exists()


def test_a_killed_process_is_one_line(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fusion.ablation.single_run.fit

    def killed(*arguments: Any, **keywords: Any) -> Any:
        if not arguments[2].own.gate:
            os._exit(9)
        return original(*arguments, **keywords)

    monkeypatch.setattr(fusion.ablation.single_run, "fit", killed)
    with pytest.raises(TrainingError, match=r"a training process was killed.*run it again, with fewer jobs \(--jobs\)"):
        ablate(read_features(done / "feats.h5"), make_variants(tmp_path), SECTION, tmp_path / "runs", CPU, 2)


def test_what_is_no_error_of_training_ends_the_work_with_its_traceback(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion.ablation.single_run, "fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ablate(read_features(done / "feats.h5"), make_variants(tmp_path), SECTION, tmp_path / "runs", CPU, 2)
    assert not multiprocessing.active_children()


def test_features_that_lack_what_a_row_needs_are_refused(done: Path, tmp_path: Path) -> None:
    features = replace(read_features(done / "feats.h5"), text=None)
    with pytest.raises(FeatureError, match="holds no text"):
        ablate(features, make_variants(tmp_path), SECTION, tmp_path / "runs", CPU, 1)


def test_results_that_cannot_be_kept_are_refused_before_training(done: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/ablations: cannot be written \(Not a directory\)"):
        ablate(
            read_features(done / "feats.h5"), make_variants(tmp_path), SECTION, tmp_path / "file" / "ablations", CPU, 1
        )


@pytest.mark.parametrize("modalities", ["both", "audio", "text"])
def test_withholding_a_modality_is_loading_without_it(modalities: Any) -> None:
    features: Features = make_features()
    whole = load_split(features, "train", modalities="both", audio_frames=4)
    expected = load_split(features, "train", modalities=modalities, audio_frames=4).gather(torch.arange(5))
    found = withhold(whole, modalities).gather(torch.arange(5))
    torch.testing.assert_close(tensors_in(found), tensors_in(expected), rtol=0, atol=0, equal_nan=True)
    rows = withhold(whole, modalities).audio
    assert isinstance(rows, Resident)
    assert isinstance(whole.audio, Resident)
    assert rows.values.data_ptr() == whole.audio.values.data_ptr()


# tables, of results that were made up


def made_comparison(folder: Path, shares: dict[str, float], seeds: str = "[0, 1, 2]") -> Comparison:
    """Rows that are right in these shares of utterances; compared with the first."""
    names = list(shares)[1:]
    sets = "".join(f"  {name}: {{model.dropout: {0.01 * (index + 1)}}}\n" for index, name in enumerate(names))
    content = f"train: {{seeds: {seeds}}}\nablations:\n{sets}" if sets else f"train: {{seeds: {seeds}}}\n"
    variants = make_variants(folder, content)
    features = make_features(Made(conversations=(2, 2, 40)))
    test = load_split(features, "test", modalities="both", audio_frames=8)
    random, true = np.random.default_rng(0), np.maximum(test.labels.numpy(), 0)
    results = {}
    for one, share in zip(variants, shares.values(), strict=True):
        right = random.random((len(variants[0].recipe.train.seeds), len(true))) < share
        predicted = np.where(right, true, (true + 1) % 3)
        results[one.name] = [
            Result(np.eye(3)[row], dict.fromkeys(LabelTask.metrics, share), 100, 5, None if index == 0 else 2.0)
            for index, row in enumerate(predicted)
        ]
    section = EvaluateParams(resamples=200, permutations=999)
    recipe = variants[0].recipe
    results["base"][-1] = replace(results["base"][-1], unlearned=("the loss never fell",))
    linear = replace(results["base"][0], note="mean of 6 linear models: 62 % text")
    floors = {"always the majority label": 0.2, "labels by their shares": 0.5}
    units = np.arange(len(test.conversations) - 1)
    seeds, task = recipe.train.seeds, LabelTask(3)
    return compare(
        Ablation(features.digest, task, test, seeds, variants, results, section, "cpu", linear, floors, units)
    )


def test_a_row_holds_the_scores_of_its_runs(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4, "alike": 0.8})
    ablation, (base, worse, alike, linear) = comparison.ablation, comparison.rows
    for row in (base, worse, alike):
        every = [score_answers(ablation.task, ablation.test, one.answers) for one in ablation.results[row.variant.name]]
        scores = [one["weighted_f1"] for one in every]
        assert row.mean == pytest.approx(np.mean(scores))
        assert row.std == pytest.approx(np.std(scores, ddof=1))
        assert row.scores["uar"] == pytest.approx(np.mean([one["uar"] for one in every]))
        assert row.interval.low < row.mean < row.interval.high
        assert (row.parameters, row.seconds) == (100, 2)
    assert base.difference is None
    assert worse.difference
    assert alike.difference
    assert worse.difference.mean == pytest.approx(worse.mean - base.mean)
    assert worse.difference.interval.high < 0 < alike.difference.interval.high
    assert worse.difference.p == pytest.approx(0.001)
    assert linear.difference
    assert linear.difference.mean == pytest.approx(linear.mean - base.mean)
    differences = [worse.difference, alike.difference, linear.difference]
    corrected = holm(np.array([one.p for one in differences]))
    assert [one.p_holm for one in differences] == corrected.tolist()


def test_the_table_says_which_rows_are_not_above_the_linear_reference_and_the_floors(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4, "better": 0.99})
    table = table_md(comparison, describe_run(comparison, None))
    assert "(mean of 6 linear models: 62 % text): " in table
    assert "Floors: always the majority label 0.200, labels by their shares 0.500." in table
    below = table.split("**Not above the linear reference: ")[1].split(".**")[0].split(", ")
    assert "worse" in below
    assert "better" not in below
    assert "**Not with an interval that excludes the better floor: worse.**" in table
    assert "**Has not learned: base (1 of 3 seeds: the loss never fell).**" in table
    assert headline(comparison).endswith("; not learned: base (1 of 3 seeds)")


def test_only_a_difference_that_the_test_confirms_is_bold(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4, "alike": 0.78})
    run_of = describe_run(comparison, None)
    for table in (table_md(comparison, run_of), table_tex(comparison, run_of)):
        bold = [line for line in table.splitlines() if ("| " in line and "**" in line) or "mathbf" in line]
        assert len(bold) == 1
        assert "worse" in bold[0]
    assert "1 of 2 differ from their base (Holm, 0.05)" in headline(comparison)


def test_a_table_of_one_seed_says_that_seeds_are_not_counted(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4}, seeds="[3]")
    run_of = describe_run(comparison, None)
    table = table_md(comparison, run_of)
    assert "With a single seed, intervals and tests count other conversations only" in table
    assert " ± 0" not in table
    assert "% a single seed, 95% intervals over conversations alone;" in table_tex(comparison, run_of)
    row = list(csv.DictReader(io.StringIO(table_csv(comparison, run_of))))[1]
    assert (row["std"], row["seconds"], row["seeds"]) == ("", "", "3")


@pytest.mark.parametrize(("seeds", "told"), [("[3]", "1 seed."), ("[3, 4]", "2 seeds.")])
def test_the_sentences_of_a_table_hold_single_spaces(tmp_path: Path, seeds: str, told: str) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4}, seeds=seeds)
    table = table_md(comparison, describe_run(comparison, None))
    assert f"mean ± standard deviation of {told}" in table
    sentences = "\n".join(line for line in table.splitlines() if not line.startswith("|"))
    assert "  " not in sentences


def test_a_table_of_the_base_row_alone_is_a_table(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8})
    write_table(comparison, tmp_path / "out", "abc")
    assert len((tmp_path / "out" / "ablations.csv").read_text().splitlines()) == 3  # the header, base and linear


def test_every_file_names_the_run(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "x_y & 50% of $a$ | b": 0.7})
    identity = describe_run(comparison, "abc")["id"]
    write_table(comparison, tmp_path / "out", "abc")
    for kind in ("csv", "md", "tex"):
        assert identity in (tmp_path / "out" / f"ablations.{kind}").read_text(encoding="utf-8")
    assert describe_run(comparison, "abd")["id"] != identity
    assert (tmp_path / "out" / "ablations.svg").read_bytes().startswith(b"<svg")
    assert (tmp_path / "out" / "ablations.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_escaped_for_latex_and_markdown(tmp_path: Path) -> None:
    name = r"x_y & 50% #1 {a} ~^ \ $b$ | c"
    assert escape_latex(name) == (
        r"x\_y \& 50\% \#1 \{a\} \textasciitilde{}\textasciicircum{} \textbackslash{} \$b\$ \textbar{} c"
    )
    comparison = made_comparison(tmp_path, {"base": 0.8, "x_y & 50% of $a$ | b": 0.7})
    run_of = describe_run(comparison, None)
    body = table_tex(comparison, run_of).split(r"\midrule")[1]
    assert r"x\_y \& 50\% of \$a\$ \textbar{} b & 0." in body
    assert all(line.count("&") - line.count(r"\&") == 5 for line in body.splitlines() if line.endswith(r"\\"))
    rows = [line for line in table_md(comparison, run_of).splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1


# the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_made(tmp_path / "data" / "feats.h5", SMALL)
    return tmp_path


def test_without_a_file_of_sets_there_is_nothing_to_compare(project: Path) -> None:
    (project / "params.yaml").unlink()
    ended = run(ablate_app, "--features", "data/feats.h5")
    assert (ended.exit_code, ended.stderr.splitlines()[-1]) == (
        2,
        "error: no params.yaml here, so there are no sets of ablations; name one with --params",
    )


def test_the_command_needs_nothing_but_the_feature_file(project: Path) -> None:
    common = ["--features", "data/feats.h5", "--jobs", "1", "--set", "train.seeds=[0]"]
    ended = run(ablate_app, *common, "--only", "no gate", "--output", "tables")
    assert ended.exit_code == 0
    assert ended.stdout.startswith("tables: 2 rows of 1 seed, base test weighted_f1 0.")
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""  # no progress bar where there is no terminal
    rows = without_seconds(project / "tables" / "ablations.csv")
    assert [(row["name"], row["overrides"]) for row in rows] == [
        ("base", ""), ("no gate", "model.hbaf.gate=false"), ("linear", ""),
    ]  # fmt: skip
    lost = run(ablate_app, *common, "--only", "no gate", "--output", "tables", "--set", "train.seeds=[1]")
    assert lost.exit_code == 2
    assert "tables/ablations.csv: holds the results of another run (other seeds); name" in lost.stderr
    variants = read_variants(project / "params.yaml", ["train.seeds=[0]"])  # more of them
    section, features = EvaluateParams(**yaml.safe_load(PARAMS)["evaluate"]), read_features(project / "data/feats.h5")
    check_table(project / "tables", features.digest, variants, section, None)
    with pytest.raises(OutputError, match=r"\(other rows: no gate\); name another folder"):
        check_table(project / "tables", features.digest, variants[:1], section, None)


REFUSED = [
    (["--only", "no gat"], "did you mean 'no gate'?"),
    (["--set", "model.hbaf.gate=false"], "'ablations.no gate' changes nothing of 'base'"),
    (["--set", "ablations.x={model.dmi: 2}"], "'ablations.x': unknown key 'model.dmi'; did you mean 'model.dim'?"),
    (["--set", "evaluate.permutations=1"], "'evaluate.permutations' is 1"),
    (["--features", "none.h5"], "none.h5: no such feature file"),
    (["--output", "params.yaml"], "params.yaml/ablations: cannot be written (Not a directory)"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_a_user_can_fix_is_one_line_and_status_2(project: Path, arguments: list[str], message: str) -> None:
    ended = run(ablate_app, "--features", "data/feats.h5", *arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_on_a_gpu_one_process_trains() -> None:
    with pytest.raises(TrainingError, match=r"2 jobs: on cuda one process trains; leave jobs out"):
        ablate(make_features(), [], SECTION, Path("none"), torch.device("cuda"), 2)
