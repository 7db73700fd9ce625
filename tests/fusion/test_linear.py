"""The linear reference: that of scikit-learn on means and deviations, of what the model may see."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from fusion.ablation.single_run import Splits, SplitTable
from fusion.data import Split, load_split, withhold
from fusion.inference import score_answers
from fusion.linear import LinearReference, fit_linear, pool_split
from fusion.objective import find_task
from fusion.params import Recipe
from pipeline.store import Features
from tests.fusion.made import LABELS, Made, make_features, tiny_recipe

ALWAYS = Made(conversations=(30, 12, 12), frames=(2, 9), tokens=(2, 5), unlabelled=0.0)
SPLITS = ("train", "validation", "test")


def load(features: Features, recipe: Recipe, resident: bool = True) -> list[Split]:
    given: dict[str, Any] = {
        "modalities": recipe.model.modalities, "audio_frames": 64, "target": recipe.train.target, "resident": resident,
    }  # fmt: skip
    return [load_split(features, name, **given) for name in SPLITS]


def fit(splits: list[Split], recipe: Recipe) -> LinearReference:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of scikit-learn's reaches the user
        return fit_linear(splits[0], splits[1], recipe, len(LABELS))


def pooled_by_hand(split: Split, name: str) -> np.ndarray:
    rows = getattr(split, name)
    ranges = zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)
    frames = [rows.values[start : start + length].double().numpy() for start, length in ranges]
    return np.stack([np.concatenate([one.mean(0), one.std(0)]) for one in frames])


@pytest.mark.parametrize("name", ["audio", "text"])
@pytest.mark.parametrize("target", ["label", "score"])
def test_it_is_the_regression_of_scikit_learn_on_mean_and_deviation(target: str, name: str) -> None:
    """Of train where it is chosen, of train and validation where it is used."""
    recipe = tiny_recipe(target=target)
    splits = load(make_features(replace(ALWAYS, scored=target == "score")), recipe)
    found = fit(splits, recipe)
    by_name = {one.variant.name: one for one in found.fitted}
    assert list(by_name) == [
        "audio", "audio, with neighbours", "text", "text, with neighbours", "audio + text",
        "audio + text, with neighbours",
    ]  # fmt: skip
    scale = StandardScaler().fit(pooled_by_hand(splits[0], name))
    train, validation, test = (scale.transform(pooled_by_hand(split, name)) for split in splits)
    truth, more = (found.task.truth(split).numpy() for split in splits[:2])
    strength = by_name[name].strength
    plain = Ridge(alpha=1 / strength) if target == "score" else LogisticRegression(C=strength, tol=1e-8)
    say = plain.predict_proba if target == "label" else lambda columns: plain.predict(columns)[:, None]
    plain.fit(train, truth)
    np.testing.assert_allclose(by_name[name].answers, say(validation), atol=1e-3)
    by_train = say(test)
    plain.fit(np.concatenate([train, validation]), np.concatenate([truth, more]))
    said = found.answer_all(splits[2])[name]
    np.testing.assert_allclose(said, say(test), atol=1e-3)
    assert np.abs(said - by_train).max() > 3e-3


def test_it_learns_what_is_planted_and_says_which_modality_tells() -> None:
    recipe = tiny_recipe()
    splits = load(make_features(replace(ALWAYS, signal=("text",))), recipe)
    found = fit(splits, recipe)
    of_text = ["text" in one.variant.modalities for one in found.fitted]
    assert found.shares[of_text].sum() > 0.99
    right = {
        name: (said.argmax(1) == splits[2].labels.numpy()).mean() for name, said in found.answer_all(splits[2]).items()
    }
    assert right["text"] > 0.9
    assert right["audio"] < 0.6


@pytest.mark.parametrize("target", ["label", "score"])
def test_it_is_the_mean_of_all_its_variants_each_as_validation_is_likely_by_it(target: str) -> None:
    recipe = tiny_recipe(target=target)
    made = replace(ALWAYS, scored=target == "score", unlabelled=0.3, conversations=(30, 40, 12))
    splits = load(make_features(made), recipe)
    found = fit(splits, recipe)
    truth = found.task.truth(splits[1]).numpy()
    counted = found.task.counted(truth)
    truth, each = truth[counted], [one.answers[counted] for one in found.fitted]
    if target == "score":
        likely = [-len(truth) / 2 * np.log(np.mean((truth - one[:, 0]) ** 2)) for one in each]
    else:
        likely = [np.log(one[np.arange(len(truth)), truth]).sum() for one in each]
    shares = np.exp((np.array(likely) - max(likely)) / 8)
    np.testing.assert_allclose(found.shares, shares / shares.sum(), rtol=1e-6)
    several = list(found.answer_all(splits[2]).values())
    inner = several if target == "score" else [np.log(one) for one in several]
    mean = sum(share * one for share, one in zip(found.shares, inner, strict=True))
    said = found.answer(splits[2])
    if target == "label":
        mean, said = mean - mean[:, :1], np.log(said) - np.log(said[:, :1])
    np.testing.assert_allclose(said, mean, atol=1e-9)
    assert found.shares.max() < 0.999  # not one alone
    on_validation = [one if target == "score" else np.log(one) for one in (one.answers for one in found.fitted)]
    mean, said = sum(share * one for share, one in zip(found.shares, on_validation, strict=True)), found.answers
    if target == "label":
        mean, said = mean - mean[:, :1], np.log(said) - np.log(said[:, :1])
    np.testing.assert_allclose(said, mean, atol=1e-9)
    assert found.scores == pytest.approx(score_answers(found.task, splits[1], found.answers))
    assert found.parameters == found.fitted[-1].parameters


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ([0.1, 0.05, 0.6, 0.25, 0, 0], "mean of 6 linear models: 60 % text; 25 % text, with neighbours"),
        ([0.1, 0.17, 0.19, 0.19, 0.17, 0.18], "mean of 6 linear models: 19 % text"),
    ],
)
def test_its_name_says_what_weighs_most(shares: list[float], name: str) -> None:
    recipe = tiny_recipe()
    found = fit(load(make_features(ALWAYS), recipe), recipe)
    assert replace(found, shares=np.array(shares)).name == name
    assert replace(found, fitted=found.fitted[:1], shares=np.ones(1)).name == found.fitted[0].name


@pytest.mark.parametrize(
    ("model", "looked_at"),
    [({"modalities": "text"}, {"text"}), ({"name": "audio"}, {"audio"}), ({"modalities": "both"}, {"audio", "text"})],
)
def test_it_looks_at_what_the_model_may_look_at(model: dict[str, str], looked_at: set[str]) -> None:
    recipe = tiny_recipe(model)
    found = fit(load(make_features(ALWAYS), recipe), recipe)
    assert {name for one in found.fitted for name in one.variant.modalities} == looked_at


@pytest.mark.parametrize("direction", ["past", "both"])
def test_neighbours_are_those_of_the_conversation_on_the_sides_the_model_sees(direction: str) -> None:
    """Of the answers of one conversation, those that change when the features of its turn 2 do."""
    recipe = tiny_recipe({"direction": direction})
    features = make_features(replace(ALWAYS, turns=(5, 5)))
    splits = load(features, recipe)
    changed = replace(splits[2], text=splits[2].text.without(torch.arange(len(splits[2].ids)) == 7))
    found = fit(splits, recipe)
    before, after = (found.answer_all(split)["text, with neighbours"] for split in (splits[2], changed))
    differing = set(np.flatnonzero(np.abs(before - after).max(1) > 1e-9).tolist())
    assert differing == ({7, 8} if direction == "past" else {6, 7, 8})


def test_neither_the_scale_of_a_column_nor_one_that_says_nothing_changes_anything() -> None:
    """One more column is constant, one is not finite where there is a label to learn."""
    recipe = tiny_recipe()
    splits = load(make_features(replace(ALWAYS, dtype=np.float32)), recipe)
    factors = torch.tensor([1e-3, 1.0, 1e3, 50.0, 1e-2, 1.0])
    scaled = []
    for one in splits:
        values = one.audio.values * factors + 5
        useless = torch.tensor([7.1, torch.inf]).expand(len(values), 2)
        scaled.append(replace(one, audio=replace(one.audio, values=torch.cat([values, useless], 1))))
    expected, found = (fit(given, recipe).answer_all(given[2])["audio"] for given in (splits, scaled))
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(Made(frames=(0, 3), tokens=(0, 2)), id="modalities missing here and there"),
        pytest.param(replace(ALWAYS, turns=(1, 1), frames=(1, 1), tokens=(1, 1)), id="one turn and one row each"),
        pytest.param(replace(ALWAYS, layers=(3, 2)), id="several layers"),
        pytest.param(replace(ALWAYS, frames=(0, 0), tokens=(0, 0)), id="nothing but labels"),
        pytest.param(replace(ALWAYS, conversations=(3, 2, 2)), id="far fewer utterances than columns"),
    ],
)
def test_any_features_are_answered_for_and_the_file_gives_what_memory_gives(made: Made) -> None:
    recipe = tiny_recipe()
    features = make_features(made)
    held, mapped = (load(features, recipe, resident) for resident in (True, False))
    answers = [fit(splits, recipe).answer(splits[2]) for splits in (held, mapped, held)]
    assert np.isfinite(answers[0]).all()
    np.testing.assert_allclose(answers[0].sum(1), 1)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("known", [1, 2])
def test_labels_that_train_lacks_are_never_told(known: int) -> None:
    recipe = tiny_recipe()
    splits = load(make_features(ALWAYS), recipe)
    splits[0] = replace(splits[0], labels=splits[0].labels % known)
    said = fit(splits, recipe).answer(splits[2])
    np.testing.assert_allclose(said[:, :known].sum(1), 1)


def test_the_test_split_and_what_is_withheld_take_no_part() -> None:
    """Validation decides, train teaches; a withheld modality is empty, whatever the file holds."""
    recipe = tiny_recipe({"modalities": "audio"})
    splits = load(make_features(ALWAYS), tiny_recipe())
    withheld = [withhold(one, "audio") for one in splits]
    np.testing.assert_array_equal(fit(withheld, recipe).answer(splits[2]), fit(splits, recipe).answer(withheld[2]))


def test_a_robust_reference_finds_what_outliers_hide_from_another() -> None:
    def heavy(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return random.standard_cauchy((len(labels), 12)) + 6 * np.eye(len(LABELS), 12)[labels]

    splits = planted(12, replace(ALWAYS, conversations=(150, 50, 200)), heavy)
    truth = splits[2].labels.numpy()
    plain, robust = (
        (
            fit(splits, tiny_recipe({"modalities": "audio", "standardise": how})).answer(splits[2]).argmax(1) == truth
        ).mean()
        for how in (True, "robust")
    )
    assert robust > plain + 0.2


def planted(columns: int, made: Made, vectors: Any) -> list[Split]:
    """Splits of one row of audio an utterance, which `vectors` (labels, generator) -> (utterances, columns) gives."""
    features = make_features(replace(made, audio_dim=columns, frames=(1, 1), turns=(1, 1), dtype=np.float32))
    assert features.audio is not None
    values = vectors(features.utterances.labels, np.random.default_rng(0)).astype(np.float32)
    recipe = tiny_recipe({"modalities": "audio"})
    return load(replace(features, audio=replace(features.audio, values=values)), recipe)


def smooth(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows like spectra: neighbouring columns nearly the same, and the label in small differences between them."""
    places = np.linspace(0, 1, 60)
    cholesky = np.linalg.cholesky(np.exp(-((places[:, None] - places) ** 2) / 0.02) + 1e-6 * np.eye(60))
    patterns = 0.03 * random.normal(size=(len(LABELS), 60))
    shape = (len(labels), 60)
    return random.normal(size=shape) @ cholesky.T + patterns[labels] + 0.05 * random.normal(size=shape)


def wide(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Many more columns than utterances, which all tell a little."""
    return random.normal(size=(len(labels), 4_000)) + 0.1 * random.normal(size=(len(LABELS), 4_000))[labels]


@pytest.mark.parametrize("vectors", [smooth, wide], ids=["smooth", "wide"])
def test_it_is_as_good_as_a_regression_that_anybody_would_fit(vectors: Any) -> None:
    splits = planted(60 if vectors is smooth else 4_000, replace(ALWAYS, conversations=(75, 25, 200)), vectors)
    recipe = tiny_recipe({"modalities": "audio"})
    scale = StandardScaler().fit(pooled_by_hand(splits[0], "audio"))
    train, validation, test = (scale.transform(pooled_by_hand(split, "audio")) for split in splits)
    truth, more, asked = (split.labels.numpy() for split in splits)
    anybodys = [LogisticRegression(C=strength, max_iter=5_000) for strength in (0.001, 0.1, 10)]
    best = max(anybodys, key=lambda model: model.fit(train, truth).score(validation, more))
    best.fit(np.concatenate([train, validation]), np.concatenate([truth, more]))
    right = fit(splits, recipe).answer(splits[2]).argmax(1) == asked
    assert right.mean() > best.score(test, asked) - 0.03


def test_scores_that_are_sums_of_the_columns_are_found() -> None:
    recipe = tiny_recipe({"modalities": "audio"}, target="score")
    features = make_features(replace(ALWAYS, scored=True, conversations=(60, 20, 20), dtype=np.float32))
    splits = load(features, recipe)
    for split in splits:
        columns = torch.from_numpy(pooled_by_hand(split, "audio"))
        split.scores[:] = 5_000 * columns @ torch.arange(columns.shape[1]).double()
    error = (fit(splits, recipe).answer(splits[2])[:, 0] - splits[2].scores.numpy()).std()
    assert error < 1e-3 * splits[2].scores.numpy().std()


def test_where_few_utterances_validate_train_is_cross_validated_too() -> None:
    recipe = tiny_recipe()
    splits = load(make_features(replace(ALWAYS, turns=(1, 1), conversations=(90, 40, 12), signal=("text",))), recipe)
    found = fit(splits, recipe)
    truth, more = (split.labels.numpy() for split in splits[:2])
    likely = []
    for name in ("audio", "text"):
        one = next(one for one in found.fitted if one.variant.name == name)
        columns = StandardScaler().fit_transform(pooled_by_hand(splits[0], name))
        model = LogisticRegression(C=one.strength, tol=1e-8, max_iter=1_000)
        folds = StratifiedGroupKFold(5).split(columns, truth, np.arange(len(truth)))
        said = cross_val_predict(model, columns, truth, cv=folds, method="predict_proba")
        own, of_validation = said[np.arange(len(truth)), truth], one.answers[np.arange(len(more)), more]
        likely.append(np.log(own).sum() + np.log(of_validation).sum())
        assert one.likelihood == pytest.approx(likely[-1], abs=0.05)
    text, audio = ([one.variant.name for one in found.fitted].index(name) for name in ("text", "audio"))
    assert np.log(found.shares[text] / found.shares[audio]) == pytest.approx((likely[1] - likely[0]) / 8, abs=0.02)


@pytest.mark.parametrize("others", [True, False], ids=["other speakers validate", "the same speakers do"])
def test_whole_speakers_are_held_out_where_other_speakers_validate(others: bool) -> None:
    """A voice tells the labels of those who were heard, and nothing about others."""
    people = 12
    made = Made(conversations=(90, 12, 60), frames=(1, 1), turns=(1, 1), unlabelled=0.0, audio_dim=40, dtype=np.float32)
    features = make_features(made)
    table, random = features.utterances, np.random.default_rng(0)
    voices = np.arange(len(table)) % people  # of one label each
    voices[np.array(table.splits) != "train"] += people * others
    values = np.eye(2 * people, 40)[voices] + 0.1 * random.normal(size=(len(table), 40))
    assert features.audio is not None
    known = replace(table, labels=voices % 3, speakers=[f"voice {one}" for one in voices])
    audio = replace(features.audio, values=values.astype(np.float32))
    recipe = tiny_recipe({"modalities": "audio"})
    found = fit(load(replace(features, utterances=known, audio=audio), recipe), recipe)
    assert (found.fitted[0].likelihood / (90 + 12) < -0.8) == others


def test_few_rows_of_many_columns_give_what_all_columns_give() -> None:
    splits = planted(4_000, replace(ALWAYS, conversations=(75, 25, 200)), wide)
    found = fit(splits, tiny_recipe({"modalities": "audio"})).fitted[0]
    assert found.model.coef_.shape == (len(LABELS), 2 * 4_000 - 4_000)  # of means; one row deviates by nothing
    scale = StandardScaler().fit(pooled_by_hand(splits[0], "audio"))
    train, validation, test = (scale.transform(pooled_by_hand(split, "audio")) for split in splits)
    truth, more = (split.labels.numpy() for split in splits[:2])
    plain = LogisticRegression(C=found.strength, tol=1e-8, max_iter=5_000).fit(train, truth)
    np.testing.assert_allclose(found.answers, plain.predict_proba(validation), atol=0.05)
    plain.fit(np.concatenate([train, validation]), np.concatenate([truth, more]))
    said = found.answer(pool_split(splits[2]), find_task("label", len(LABELS)))
    np.testing.assert_allclose(said, plain.predict_proba(test), atol=0.05)


def test_what_is_known_of_the_same_splits_is_not_fitted_again() -> None:
    recipe = tiny_recipe()
    found = fit(load(make_features(ALWAYS), recipe), recipe)
    assert fit(load(make_features(ALWAYS), recipe), recipe) is found


@pytest.mark.parametrize(
    "other",
    [
        tiny_recipe({"standardise": "robust"}), tiny_recipe({"direction": "past"}), tiny_recipe({"modalities": "text"}),
        tiny_recipe({}, {"class_weights": "balanced"}), tiny_recipe(metric="uar"),
    ],
)  # fmt: skip
def test_what_is_known_of_other_settings_is_not_taken(other: Recipe) -> None:
    splits = load(make_features(ALWAYS), tiny_recipe())
    assert fit(splits, other) is not fit(splits, tiny_recipe())


@pytest.mark.parametrize("what", ["labels", "conversations", "speakers"])
def test_what_is_known_of_other_splits_is_not_taken(what: str) -> None:
    recipe, splits = tiny_recipe(), load(make_features(replace(ALWAYS, turns=(2, 2))), tiny_recipe())
    found, train = fit(splits, recipe), splits[0]
    alone = torch.arange(len(train.ids) + 1)
    splits[0] = {
        "labels": replace(train, labels=train.labels.flip(0)),
        "conversations": replace(train, conversations=alone, conversation_ids=train.ids),
        "speakers": replace(train, speaker_names=[f"speaker {number % 7}" for number in range(len(train.ids))]),
    }[what]
    splits[1] = replace(splits[1], speaker_names=["another"] * len(splits[1].ids))
    assert fit(splits, recipe) is not found


def test_rows_of_an_ablation_share_a_reference_only_where_they_are_given_the_same() -> None:
    plain, robust = tiny_recipe(), tiny_recipe({"standardise": "robust"})
    splits = load(make_features(ALWAYS), plain)
    table = SplitTable({(0, plain.model.audio_frames): Splits(*splits)}, {})
    found = table.reference(plain, len(LABELS))
    assert table.reference(tiny_recipe(learning_rate=1e-3), len(LABELS)) is found
    assert table.reference(robust, len(LABELS)) is not found


@pytest.mark.parametrize("conversations", [9, 10])
def test_train_of_few_conversations_is_not_cross_validated(conversations: int) -> None:
    recipe = tiny_recipe()
    splits = load(make_features(replace(ALWAYS, conversations=(conversations, 4, 4), turns=(4, 4))), recipe)
    one = fit(splits, recipe).fitted[0]
    of_validation = np.log(one.answers[np.arange(16), splits[1].labels]).sum()
    assert (one.likelihood == pytest.approx(of_validation)) == (conversations < 10)
