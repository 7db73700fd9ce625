"""The page's content: what it takes from results, models, manifest and recordings, and what it refuses."""

import base64
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fusion.checkpoint import load_seeds
from fusion.data import load_split
from fusion.errors import FeatureError, OutputError, ResultError
from fusion.evaluation import read_records
from fusion.inference import predict_heads
from fusion.objective import find_task
from fusion.report import Sources
from fusion.report.charts import robustness_charts
from fusion.report.groups import by_length, group_tables
from fusion.report.overview import describe_results
from fusion.report.results import read_results
from fusion.report.turns import ask, script_json
from fusion.report.utterances import find_sounds, find_words
from fusion.report.views import LONGEST, Viewer
from pipeline.errors import DataError
from pipeline.store import Identity
from tests.fusion.made import Made, make_features, tiny_recipe, train_made, write_made
from tests.fusion.paged import LABELS, Evaluated, evaluated, hostile_made, write_tone, written_predictions

ROOT = Path(__file__).parents[3]


def turns_of(page: Path) -> dict[str, Any]:
    """The JSON that the page's script reads."""
    found = re.search(r'<script type="application/json" id="turns">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluated(tmp_path_factory.mktemp("labelled"), Made(conversations=(6, 4, 6)), {})


@pytest.fixture(scope="module")
def page(labelled: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    folder = tmp_path_factory.mktemp("page")
    labelled.write(folder)
    return folder / "index.html"


def test_predictions_are_those_of_the_result_files(labelled: Evaluated, page: Path) -> None:
    turns = turns_of(page)
    rows = written_predictions(labelled)
    for index, seed in enumerate(("0", "1")):
        written = np.array(
            [[row[f"p_{name}"] for name in turns["labels"]] for row in rows if row["seed"] == seed], float
        )
        bytes_ = np.frombuffer(base64.b64decode(turns["answers"][index]), np.uint8).reshape(written.shape)
        np.testing.assert_allclose(bytes_ / 255, written, atol=0.5 / 255 + 1e-6)
    assert turns["ids"] == [row["utterance"] for row in rows if row["seed"] == "0"]


def test_the_page_says_the_numbers_of_metrics_json(labelled: Evaluated, page: Path) -> None:
    text = page.read_text("utf-8").replace("\u00a0", " ")
    for own in json.loads((labelled.results / "metrics.json").read_text()).values():
        if "mean" in own:
            assert f"{own['mean']:.3f} ± {own['std']:.3f}" in text


def test_robustness_is_drawn_in_its_units_and_one_range() -> None:
    levels = [("noise", "inf", "", 0.8), ("noise", "10", "", 0.2), ("word-errors", "0", "0.0", 0.8)]
    levels += [("word-errors", "0.1", "0.0984", 0.7), ("word-errors", "0.2", "0.1955", 0.6)]
    rows = [
        {"study": study, "level": level, "word_error_rate": errors, "accuracy": str(score)}
        | {"accuracy_low": str(score - 0.05), "accuracy_high": str(score + 0.05)}
        for study, level, errors, score in levels
    ]
    charts = robustness_charts(rows, "accuracy", 0.3)
    noise, words = (re.findall(r"<text[^>]*>([^<]+)</text>", chart) for chart in charts)
    assert all('stroke-dasharray="4,3"' in chart for chart in charts)  # the floor
    assert {"clean", "10", "signal-to-noise ratio (dB)"} <= set(noise)
    assert {"clean", "0.098", "0.196", "word error rate"} <= set(words)
    ticks = [{one for one in texts if re.fullmatch(r"0\.\d", one)} for texts in (noise, words)]
    assert ticks[0] == ticks[1] != set()


def test_the_same_inputs_give_the_same_bytes(labelled: Evaluated, page: Path, tmp_path: Path) -> None:
    labelled.write(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == page.read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize(
    "model",
    [
        {"name": "hbaf"},
        {"name": "hbaf", "context_turns": 3, "audio_frames": 2},  # 2: as many frames as heads
        {"name": "hcam"},
        {"name": "crossmodal"},
        {"name": "misa"},
        {"name": "dialoguegcn"},
    ],
    ids=str,
)
def test_views_are_the_models_own(model: Mapping[str, Any], tmp_path: Path) -> None:
    features = write_made(tmp_path / "feats.h5", Made(conversations=(3, 2, 4), frames=(1, 5), tokens=(1, 5)))
    recipe = tiny_recipe(model, epochs=1)
    train_made(features, tmp_path / "models", recipe)
    loaded = load_seeds(tmp_path / "models")[0]
    split = load_split(features, "test", modalities="both", audio_frames=recipe.model.audio_frames)
    viewer = Viewer(loaded)
    shown = {one.utterance: one.content for one in viewer.show(split, [2, 0])}
    assert viewer.axes
    for conversation in (2, 0):
        first, last = split.conversations[conversation : conversation + 2].tolist()
        with torch.inference_mode():
            views = loaded.model(split.gather(torch.tensor([conversation])), views=True).views
        for turn in range(first, last):
            content, at = zlib.decompress(shown[turn]), 0
            lengths = {"frames": split.audio.lengths[turn], "tokens": split.text.lengths[turn], "turns": last - first}
            for name, axes in viewer.axes.items():
                own = views[name][turn - first].numpy()
                own = own.mean(-1) if own.shape[0] == views[name].shape[1] and "gate" in name else own
                own = own[:, 0] if "relevance" in name else own
                own = own.mean(0) if name.endswith(("attention", "intra", "inter")) else own
                for number, axis in enumerate(axes):
                    extra = np.arange(own.shape[number] - axis.extra, own.shape[number])
                    own = own.take([*range(int(lengths[axis.kind])), *extra], number)
                largest = np.frombuffer(content, np.float32, 1, at)[0]
                steps = np.frombuffer(content, np.uint8, own.size, at + 4).reshape(own.shape)
                np.testing.assert_allclose(steps * (largest / 255), own, atol=largest / 500 + 1e-5, err_msg=name)
                at += 4 + own.size
            assert at == len(content)


def test_a_model_without_context_moves_nothing_when_the_other_turns_are_removed(tmp_path: Path) -> None:
    features = write_made(tmp_path / "feats.h5", Made(conversations=(4, 3, 4)))
    split = load_split(features, "test", modalities="both", audio_frames=8)
    task = find_task("label", 3)
    for name, alone in (
        ("context", {}),
        ("none", {"context": "text", "conversation_encoder": "none", "linear_path": False}),
    ):
        train_made(features, tmp_path / name, tiny_recipe(alone, epochs=1))
        said = ask(load_seeds(tmp_path / name), [split], task)
        assert (said.change.max() < 1e-5) == (name == "none")
        assert said.audio is not None


def test_models_that_speak_side_by_side_say_the_same(labelled: Evaluated) -> None:
    splits = [load_split(labelled.features, name, modalities="both", audio_frames=8) for name in ("train", "test")]
    one, other = (ask(load_seeds(labelled.models), splits, find_task("label", 3), jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.answers, other.answers)
    np.testing.assert_array_equal(one.alone, other.alone)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("made", "model", "train", "split"),
    [
        (Made(conversations=(4, 3, 3), scored=True), {"name": "hbaf"}, {"target": "score"}, "test"),
        (Made(conversations=(4, 3, 3), scored=True), {"name": "hcam"}, {"target": "score", "seeds": (0, 1)}, "all"),
        (Made(conversations=(4, 3, 3)), {"name": "hcam", "ensemble": True}, {}, "all"),
        (Made(conversations=(4, 3, 3)), {"name": "text", "conversation_encoder": "none"}, {}, "test"),
        (Made(conversations=(4, 3, 3)), {"name": "concat"}, {}, "validation"),
        (Made(conversations=(4, 3, 3)), {"name": "hbaf", "modalities": "audio"}, {}, "test"),
    ],
    ids=str,
)
def test_every_model_and_target_gets_a_page(
    made: Made, model: dict[str, Any], train: dict[str, Any], split: str, tmp_path: Path
) -> None:
    one = evaluated(tmp_path, made, model, **{"seeds": (3,), "epochs": 1} | train)
    written = one.write(tmp_path / "page", split)
    turns = turns_of(tmp_path / "page" / "index.html")
    splits = one.features.utterances.splits
    assert written.turns == len(turns["ids"]) == (len(splits) if split == "all" else splits.count(split))
    assert written.viewed == written.turns
    said = "Scores are means over seeds." if made.scored else "Probabilities are means over seeds, in steps of 0.4 %."
    assert said in (tmp_path / "page" / "index.html").read_text("utf-8")


def test_without_manifest_and_recordings_the_page_says_so(labelled: Evaluated, tmp_path: Path) -> None:
    labelled.write(tmp_path, sources=Sources())
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "No manifest was given, so turns go by their ids" in page
    assert turns_of(tmp_path / "index.html")["texts"] is None


def test_views_stop_at_their_budget_and_the_page_says_for_how_many(
    labelled: Evaluated, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page.stat().st_size
    monkeypatch.setattr("fusion.report.build.PAGE_BYTES", whole - 4000)
    written = labelled.write(tmp_path)
    assert 0 < written.viewed < written.turns == len(turns_of(page)["ids"])
    assert written.size < whole
    assert f"Views are those of seed 0, for {written.viewed} turns" in (tmp_path / "index.html").read_text("utf-8")


def test_results_of_other_models_are_refused(labelled: Evaluated, tmp_path: Path) -> None:
    train_made(labelled.features, tmp_path / "other", tiny_recipe({"gate": False}, epochs=1))
    with pytest.raises(ResultError, match=r"of another evaluation than .*other.* run fusion-evaluate"):
        replace(labelled, models=tmp_path / "other").write(tmp_path)
    with pytest.raises(ResultError, match=r"details.json: no such result file; run fusion-evaluate"):
        replace(labelled, results=tmp_path / "none").write(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("details.json", "[]", "damaged, or not of fusion-evaluate"),
        ("details.json", "\xff", "damaged, or not of fusion-evaluate"),
        ("details.json", "[" * 50_000, "damaged, or not of fusion-evaluate"),
        ("details.json", '"mean": 0.', "details.json: damaged or edited since it was written"),
        ("curves.csv", "run,seed\nx,0\n", "has no column 'stage'"),
        ("confusion.csv", "run,seed,actual,predicted\nother,0,joy,joy\n", "of run other, but details.json is of run"),
        ("predictions.csv", "run,seed,utterance,true,predicted\na,b\n", "longer or shorter than the header"),
    ],
)
def test_damaged_results_are_refused(
    labelled: Evaluated, tmp_path: Path, name: str, content: str, message: str
) -> None:
    for path in labelled.results.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content.startswith('"'):  # an edit
        content = (tmp_path / name).read_text().replace(content, content + "1")
    (tmp_path / name).write_text(content)
    with pytest.raises(ResultError, match=message):
        read_results(tmp_path, load_seeds(labelled.models), labelled.features)


@pytest.mark.parametrize("name", ["table.md", "metrics.json", "predictions.csv"])
def test_files_of_two_runs_are_refused(labelled: Evaluated, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(labelled.results, tmp_path / "results"))
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(ResultError, match=rf"{name}: of another run than the files beside it"):
        replace(labelled, results=folder).write(tmp_path)


def test_a_page_of_somebody_else_is_not_replaced(labelled: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>Mine</title>")
    with pytest.raises(OutputError, match=r"index.html: exists and is not a page of fusion-report; name another"):
        labelled.write(tmp_path)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": 1, "status": "ok"}', '{"status": "ok"}', '{"id": "a", "status": "ok", "start": "x"}']
)
def test_a_manifest_with_a_line_that_is_no_utterance_is_refused(line: str, labelled: Evaluated, tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"id": "a", "status": "ok", "text": "b"}\n' + line)
    with pytest.raises(DataError, match=r"line 2: .* run pipeline-prepare again"):
        read_records(path, labelled.features)


def test_a_manifest_of_other_utterances_is_refused(labelled: Evaluated, tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"id": "of-another-corpus", "status": "ok", "text": "b"}\n')
    with pytest.raises(FeatureError, match=r"names no utterance of .*; name the manifest it was made of"):
        read_records(path, labelled.features)


def test_a_split_that_there_is_not_is_refused(labelled: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"--split tset: expected one of train, validation, test or all"):
        labelled.write(tmp_path, "tset")


def test_nothing_in_the_json_can_end_its_element() -> None:
    hostile = {"a": "</script><!-- <script> ]]> & \u2028\u2029"}
    text = script_json(hostile)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == hostile


def test_recordings_are_inside_while_there_is_room_then_beside(tmp_path: Path) -> None:
    root = tmp_path / "cor pus"
    root.mkdir()
    for name in ("a.wav", "b.wav"):
        write_tone(root / name, 0.1)
    (root / "c.xyz").write_bytes(b"no sound")
    size = (root / "a.wav").stat().st_size
    found = find_sounds(["a.wav", "b.wav", "a.wav", "c.xyz", "gone.wav"], root, tmp_path / "out", 2 * size)
    assert list(found) == ["a.wav", "b.wav"]
    assert base64.b64decode(found["a.wav"].source.split(",")[1]) == (root / "a.wav").read_bytes()
    assert (found["b.wav"].inside, found["b.wav"].source) == (False, "../cor%20pus/b.wav")


def test_words_are_named_by_the_tokenizer_of_the_features_alone() -> None:
    folder = ROOT / "pipeline" / "encoders" / "weights" / "tiny-bert"
    own = "018917121c8d818b001e486eeb37842de628b13ac6831e2982bef2ac84932e8b"
    words = find_words(Identity({"tokenizer": own, "model": "model"}), [folder])
    assert words
    assert words.of("So do I!", 6) == ["[CLS]", "So", "do", "I", "!", "[SEP]"]
    assert words.of("So do I!", 5) is None
    in_context = find_words(Identity({"tokenizer": own, "model": "model", "past_turns": 0, "speakers": True}), [folder])
    assert in_context
    assert in_context.of("So do I!", 4) == ["So", "do", "I", "!"]
    assert find_words(Identity({"tokenizer": "0" * 64, "model": "model"}), [folder]) is None
    with pytest.raises(FeatureError, match="no such tokenizer"):
        find_words(Identity({"tokenizer": own, "model": "model"}), [folder / "none"])


def test_long_utterances_are_shown_in_blocks(tmp_path: Path) -> None:
    made = Made(conversations=(1, 1, 1), turns=(2, 2), frames=(150, 200), tokens=(70, 90), unlabelled=0)
    one = evaluated(tmp_path, made, {"audio_frames": 180}, seeds=(0,), epochs=1)
    assert one.write(tmp_path / "page").viewed
    turns = turns_of(tmp_path / "page" / "index.html")
    content = zlib.decompress(base64.b64decode(turns["views"]["content"]["0"]))
    sizes = [np.prod([LONGEST + axis["extra"] for axis in view["axes"]]) for view in turns["views"]["shown"]]
    assert len(content) == sum(4 + size for size in sizes)


def test_groups_are_scored_as_sklearn_scores_them(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    one = evaluated(tmp_path, hostile_made(), {})
    results = read_results(one.results, load_seeds(one.models), one.features)
    records = {
        name: record.model_copy(
            update={"extra": {"gender": "f" if index % 3 else "m", "same": "x", "length": "ab"[index % 2]}}
        )
        for index, (name, record) in enumerate(read_records(tmp_path / "manifest.jsonl", one.features).items())
    }
    task = find_task("label", len(LABELS))
    tables = {
        table["header"][0]: table["rows"] for table in group_tables(results, one.features, records, task, "weighted_f1")
    }
    assert {"length", "gender", "length (column)"} == set(tables)  # of its speakers none has ten turns
    rows = [row for row in results.predictions if row["true"] and records[row["utterance"]].extra["gender"] == "m"]
    scores = []
    for seed in ("0", "1"):
        own = [row for row in rows if row["seed"] == seed]
        true, predicted = [row["true"] for row in own], [row["predicted"] for row in own]
        scores.append(f1_score(true, predicted, average="weighted", zero_division=0))
    expected = ["m", str(len(rows) // 2), f"{np.mean(scores):.3f} \u00b1 {np.std(scores, ddof=1):.3f}"]
    assert expected in tables["gender"]
    counted = len({row["utterance"] for row in results.predictions if row["true"]})
    assert all(sum(int(row[1]) for row in rows) == counted for rows in tables.values())


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4] * 20, [3] * 10 + [4] * 10 + [5] * 9 + [6] * 11])
def test_a_group_of_lengths_is_what_its_name_says_and_none_is_lost(lengths: list[int]) -> None:
    features = make_features(Made(conversations=(20, 5, 6)))
    assert features.text is not None
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    part = replace(features.text, offsets=offsets, ids=list(map(str, lengths)))
    rows = list(range(len(lengths)))
    for seconds in (False, True):
        records = [SimpleNamespace(seconds=0.5 + one / 1000) if seconds else None for one in lengths]
        found = by_length(rows, replace(features, text=part), cast(Any, records))
        assert len(found) > 1 or seconds  # which are all 0.50 as they are printed
        assert found
        assert sorted(place for members in found.values() for place in members) == (rows if found else [])
        for name, members in found.items():
            values = [lengths[place] for place in members]
            if not seconds and name.startswith("up to"):
                assert max(values) <= int(name.split()[2])
            elif not seconds and " to " in name:
                low, _, high, _ = name.split()
                assert int(low) < min(values) <= max(values) <= int(high)


def test_what_evaluation_warns_of_is_said_first(labelled: Evaluated, page: Path) -> None:
    warnings = json.loads((labelled.results / "details.json").read_text())["warnings"]
    assert any("linear reference" in line for line in warnings)  # these features are too easy for a difference
    text = page.read_text("utf-8")
    assert all(f'<p class="warning">{line}</p>' in text for line in warnings)


def test_another_model_stands_beside_on_the_same_turns(labelled: Evaluated, tmp_path: Path) -> None:
    train_made(labelled.features, tmp_path / "hcam", tiny_recipe({"name": "hcam"}, seeds=(3,), epochs=1), jobs=1)
    labelled.write(tmp_path / "page", "all", replace(labelled.sources, beside=tmp_path / "hcam"))
    turns = turns_of(tmp_path / "page" / "index.html")
    assert turns["beside"]["name"] == "hcam"
    model = load_seeds(tmp_path / "hcam")[0]
    frames = model.provenance.recipe.model.audio_frames
    splits = [load_split(labelled.features, name, modalities="both", audio_frames=frames) for name in turns["splits"]]
    expected = [
        predict_heads(model.model, split, find_task("label", len(LABELS)))["fused"].argmax(-1) for split in splits
    ]
    found = np.frombuffer(base64.b64decode(turns["beside"]["predicted"]), "<i2")
    np.testing.assert_array_equal(found, np.concatenate(expected))


@pytest.mark.parametrize(
    "text",
    [
        "joy \u202e",
        "\u2069\u202ejoy",
        "a \u2067b \u202ac",
        "\u2067a\u202eb\u2069c\u202c",
        "\u202c\u2069",
        "\u202ea\u202cb",
    ],
)
def test_marks_of_direction_end_with_their_text(text: str) -> None:
    shown = json.loads(script_json({"turns": [text]}))["turns"][0]
    assert re.sub("[\u202a-\u202e\u2066-\u2069]", "", shown) == re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)
    assert script_json({"label": "joy"}) == '{"label":"joy"}'
    opened: list[str] = []
    for place, mark in enumerate(shown):
        if mark in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068":
            opened.append("\u202c" if mark < "\u2060" else "\u2069")
        elif mark in "\u202c\u2069":
            while opened.pop() != mark:  # the end of an isolate closes what was embedded in it
                assert mark == "\u2069"
        assert bool(opened) == (place < len(shown) - 1)  # all of it lies in one isolate


def test_ablations_of_other_features_are_left_out_and_their_own_confidence_is_shown(
    labelled: Evaluated, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(labelled.results, tmp_path / "results")
    (folder / "ablations.csv").write_text("run,name,metric,mean,low,high\n0,base,weighted_f1,0.5,0.4,0.6\n")
    loaded = load_seeds(labelled.models)
    recipe = loaded[0].provenance.recipe.digest
    run = {"features": labelled.features.digest, "evaluate": {"confidence": 0.8}, "rows": {"base": [None, recipe]}}
    for changed, rows, own in (
        ({}, 1, True),
        ({"rows": {"base": [None, "another"], "set": ["base", recipe]}}, 1, False),
        ({"features": "0" * 64}, 0, True),
    ):
        (folder / "ablations.json").write_text(json.dumps({"run": run | changed, "files": {}}))
        results = read_results(folder, loaded, labelled.features)
        assert (len(results.ablations), results.ablation_confidence, results.ablation_own) == (rows, 0.8, own)
        caption = describe_results(results, loaded, labelled.features, {}).get("ablations", {}).get("caption", "")
        assert ("is another model than that of this page" in caption) == (not own)
    assert "ablations.json: of other features than" in caplog.text
