"""What the overview of the page says of its own numbers: of which part of the model, and of which turns, they are."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.ablation.table_files import table_notes, write_table
from fusion.checkpoint import load_seeds
from fusion.data import load_split
from fusion.evaluation import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from fusion.layers import LinearPath
from fusion.objective import find_task
from fusion.report.overview import describe_beside, describe_data, describe_results
from fusion.report.results import read_results
from fusion.report.turns import Beside, ask
from fusion.report.views import weigh_parts
from tests.fusion.ablation.test_ablation import made_comparison
from tests.fusion.made import Made, make_features
from tests.fusion.paged import Evaluated, evaluated

STYLE = Path(__file__).parents[3] / "fusion" / "report" / "assets" / "page.css"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluated(tmp_path_factory.mktemp("labelled"), Made(conversations=(6, 4, 6)), {})


def text_of(one: Evaluated, folder: Path) -> str:
    """The page, without the tags inside its charts."""
    one.write(folder)
    return re.sub(r"</?tspan[^>]*>", " ", (folder / "index.html").read_text("utf-8"))


@pytest.mark.parametrize("linear_path", [True, False])
def test_curves_and_validation_scores_say_whether_the_linear_path_is_in_them(linear_path: bool, tmp_path: Path) -> None:
    one = evaluated(tmp_path, Made(conversations=(6, 4, 4)), {"linear_path": linear_path}, epochs=1)
    page, table = text_of(one, tmp_path / "page"), (one.results / "table.md").read_text("utf-8")
    for said in (
        "without the linear path by epoch, a line for each seed",
        "validation weighted F1, with the linear path",
        "validation: with the linear",
    ):
        assert (said in page) == linear_path
    assert (
        "Validation scores are those with the linear path; `curves.csv` has those without it." in table
    ) == linear_path
    assert ("Views are of the deep part, whose logits are multiplied by" in page) == linear_path
    assert ("linear path: spread over turns" in page) == linear_path


@pytest.mark.parametrize("scored", [False, True])
def test_the_page_weighs_the_deep_part_and_the_linear_path_as_they_add_up(scored: bool, tmp_path: Path) -> None:
    target = "score" if scored else "label"
    one = evaluated(tmp_path, Made(conversations=(6, 4, 6), scored=scored), {}, target=target, epochs=1)
    models = load_seeds(one.models)
    split = load_split(one.features, "test", modalities="both", audio_frames=8)
    batch = split.gather(torch.arange(len(split.conversations) - 1))
    task = find_task(target, 3)

    def spread(outputs: np.ndarray) -> float:
        centred = outputs if scored else outputs - outputs.mean(1, keepdims=True)
        return float(np.sqrt(np.mean(np.var(centred, axis=0))))

    for weight in (None, 0.0):
        for loaded in models:
            path = loaded.model.linear_path
            assert isinstance(path, LinearPath)
            path.deep.fill_(float(path.deep) if weight is None else weight)
        found = weigh_parts(models, [split], ask(models, [split], task).answers)
        for loaded, parts in zip(models, found, strict=True):
            with torch.inference_mode():
                whole, linear = loaded.model(batch).logits.double().numpy(), loaded.model.linear_path(batch).numpy()
            assert parts.factor == float(loaded.model.linear_path.deep)
            assert parts.deep == pytest.approx(spread(whole - linear), rel=1e-3, abs=1e-5)
            assert parts.linear == pytest.approx(spread(linear), rel=1e-3)
            assert (parts.deep < 1e-5) == (weight == 0)


def test_two_models_are_scored_on_test_turns_wherever_there_are_any(labelled: Evaluated) -> None:
    models, task = load_seeds(labelled.models), find_task("label", 3)
    split = {name: load_split(labelled.features, name, modalities="both", audio_frames=8) for name in ("train", "test")}
    described = []
    for names in (["test"], ["train", "test"], ["train"]):
        splits = [split[name] for name in names]
        said = ask(models, splits, task)
        described.append(describe_beside("hbaf", said, Beside("other", said), splits)["beside"])
    of_test, of_both, of_train = described
    assert of_both == of_test
    assert "of the test split, mean probabilities" in of_test["scores_caption"]
    assert "of the train split, mean probabilities" in of_train["scores_caption"]


def test_utterances_are_counted_by_what_is_learned() -> None:
    features = make_features(Made(scored=True))
    rows = {row[0]: row[1:] for row in describe_data(features, {}, "score")["count_rows"]}
    assert list(rows) == ["utterances", "conversations", "scored", "no score"]
    missing = np.isnan(features.utterances.scores)
    of_test = np.array([split == "test" for split in features.utterances.splits])
    assert rows["no score"][2] == str((missing & of_test).sum())
    assert rows["scored"][2] == str((~missing & of_test).sum())
    by_label = [row[0] for row in describe_data(make_features(), {}, "label")["count_rows"]]
    assert by_label[2:] == ["anger", "joy", "neutral", "no label"]


def test_the_page_says_below_the_ablations_what_the_table_says(labelled: Evaluated, tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4})
    folder = shutil.copytree(labelled.results, tmp_path / "results")
    write_table(comparison, folder, None)
    content = json.loads((folder / "ablations.json").read_text())
    assert content["notes"] == table_notes(comparison)
    assert content["notes"][-1] == "Has not learned: base (1 of 3 seeds: the loss never fell)."
    content["run"]["features"] = labelled.features.digest  # as if they were of the same
    (folder / "ablations.json").write_text(json.dumps(content))
    loaded = load_seeds(labelled.models)
    described = describe_results(read_results(folder, loaded, labelled.features), loaded, labelled.features, {})
    assert described["ablations"]["header"].count("95% interval") == 2
    page = text_of(replace(labelled, results=folder), tmp_path / "page")
    assert all(f'<p class="warning">{note}</p>' in page for note in content["notes"])


def luminance(colour: str) -> float:
    """Of `#rrggbb` (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [BLUE, SKY, ORANGE, GREEN, VERMILION, GREY])
def test_the_colours_of_charts_stand_out_from_both_pages(colour: str) -> None:
    papers = [found if len(found) == 7 else "#ffffff" for found in re.findall(r"--paper: (#\w+)", STYLE.read_text())]
    assert set(papers) == {"#ffffff", "#14181c"}
    for paper in papers:
        lower, higher = sorted((luminance(colour), luminance(paper)))
        assert (higher + 0.05) / (lower + 0.05) >= 3, paper
