"""The linear model beside the deep one: the linear reference itself, weighted on validation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fusion.data import Split, load_split
from fusion.inference import predict
from fusion.layers import LinearPath, path_weights
from fusion.linear import Fitted, fit_linear, pool_split
from fusion.models import MODELS
from fusion.objective import find_task
from fusion.params import Recipe
from fusion.training import find_signs, fit
from tests.fusion.made import Made, make_features, tiny_recipe

MADE = Made(conversations=(12, 6, 6), frames=(0, 9), layers=(1, 2))


def splits_of(made: Made, recipe: Recipe) -> list[Split]:
    given: dict[str, Any] = {"audio_frames": 8, "target": recipe.train.target, "modalities": recipe.model.modalities}
    return [load_split(make_features(made), name, **given) for name in ("train", "validation", "test")]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["label", "score"])
def test_the_linear_path_says_what_the_linear_reference_says(name: str, target: str) -> None:
    recipe = tiny_recipe({"name": name, "direction": "past"}, epochs=1, target=target)
    train, validation, test = splits_of(replace(MADE, scored=target == "score"), recipe)
    reference, task = fit_linear(train, validation, recipe, 3), find_task(recipe.train.target, 3)
    model = fit(train, validation, recipe, 0, classes=3).model
    path = model.linear_path
    assert isinstance(path, LinearPath)
    assert float(path.deep) > 0 or target == "score"  # of which the linear model may know all
    for one in (*reference.fitted, reference):  # of audio, text and both; with and without neighbours; their mean
        alone = isinstance(one, Fitted)
        path.fit(one.weights(task) if alone else one.weights())
        path.deep.zero_()
        expected = one.answer(pool_split(test), task) if alone else one.answer(test)
        np.testing.assert_allclose(predict(model, test, task), expected, atol=1e-5)
    far = replace(test, text=replace(test.text, values=test.text.values.float() * 1e6))
    np.testing.assert_allclose(predict(model, far, task), reference.answer(far), atol=1e-4)


def test_one_utterance_to_validate_on_is_enough() -> None:
    recipe = tiny_recipe({"name": "concat"}, epochs=1)
    train, validation, _ = splits_of(replace(MADE, conversations=(12, 1, 1), turns=(1, 1), unlabelled=0), recipe)
    assert len(validation.ids) == 1
    assert hasattr(fit(train, validation, recipe, 0, classes=3).model, "linear_path")


@pytest.mark.parametrize("known", [1, 2])
def test_of_labels_that_train_lacks_none_is_ever_told(known: int) -> None:
    recipe = tiny_recipe({"name": "concat"}, epochs=1)
    train, validation, test = splits_of(replace(MADE, unlabelled=0), recipe)
    reference = fit_linear(replace(train, labels=train.labels % known), validation, recipe, 3)
    path = LinearPath((test.audio.dim, 1), (test.text.dim, 2), 3, ("audio", "text"))
    path.fit(reference.weights())
    said = torch.cat([path(batch) for batch in test.batches(4)]).softmax(1)
    np.testing.assert_allclose(said, reference.answer(test), atol=1e-3)
    assert said[:, known:].max() < 1e-3


@pytest.mark.parametrize("direction", ["past", "both"])
def test_what_lies_beside_a_trained_model_is_the_reference_times_one_weight(direction: str) -> None:
    recipe = tiny_recipe({"name": "concat", "direction": direction}, epochs=1)
    train, validation, _ = splits_of(MADE, recipe)
    reference = fit_linear(train, validation, recipe, 3)
    assert len(reference.fitted) == 6
    done = fit(train, validation, recipe, 0, classes=3)
    path, given = done.model.linear_path, reference.weights()
    weight = float(path.bias[0] / given.bias[0])
    assert weight > 0
    np.testing.assert_allclose(path.bias, weight * given.bias, rtol=1e-4)
    for name, part in path.parts.items():
        np.testing.assert_allclose(part.weights, weight * given.weights[name], rtol=1e-4, atol=1e-7)
    kept = predict(done.model, validation, find_task("label", 3))
    path.fit(reference.weights(on_train=True))
    path.weigh(float(path.deep), weight)
    assert not np.allclose(done.answers["fused"], kept, atol=1e-4)
    np.testing.assert_allclose(done.answers["fused"], predict(done.model, validation, find_task("label", 3)), atol=1e-5)


def test_without_a_linear_path_the_deep_model_speaks_alone_and_heads_never_notice() -> None:
    alone, beside = (tiny_recipe({"linear_path": wanted, "modalities": "audio"}, epochs=1) for wanted in (False, True))
    splits = splits_of(MADE, alone)
    deep, both = (fit(*splits[:2], recipe, 0, classes=3) for recipe in (alone, beside))
    assert not hasattr(deep.model, "linear_path")
    assert np.array_equal(deep.answers["audio"], both.answers["audio"])
    assert not np.array_equal(deep.answers["fused"], both.answers["fused"])
    assert deep.history == both.history


@pytest.mark.parametrize("scores", [False, True])
def test_the_weights_follow_the_better_model_as_far_as_the_utterances_say_so(scores: bool) -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=4000) if scores else generator.integers(3, size=4000)
    good = truth[:, None] + generator.normal(size=(4000, 1)) if scores else 2 * np.eye(3)[truth]
    good = good + generator.normal(size=good.shape) / 2
    bad = generator.normal(size=good.shape)
    many, few = path_weights(bad, good, truth, scores), path_weights(bad[:4], good[:4], truth[:4], scores)
    assert many[1] > 5 * many[0]
    deep_weight, linear_weight = path_weights(good, bad, truth, scores)
    assert deep_weight > 5 * linear_weight
    assert 0.25 < few[1] < 1


def test_a_deep_model_that_is_too_sure_counts_as_it_would_calibrated() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=40)
    deep, linear = (np.eye(3)[truth] + generator.normal(size=(40, 3)) for _ in range(2))
    modest, sure = (path_weights(times * deep, linear, truth, scores=False) for times in (1, 8))
    assert 8 * sure[0] == pytest.approx(modest[0], rel=1e-2)
    assert sure[1] == pytest.approx(modest[1], rel=1e-2)


def test_a_model_that_has_learned_nothing_gets_no_weight() -> None:
    """It always gives the shares of the labels, which are not those of validation."""
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=1000)
    linear = 2 * np.eye(3)[truth] + generator.normal(size=(1000, 3))
    dead = np.broadcast_to(np.log([0.6, 0.3, 0.1]), linear.shape)
    deep_weight, linear_weight = path_weights(dead, linear, truth, scores=False)
    assert deep_weight < 0.01
    assert linear_weight > 0.9


def test_a_path_that_is_not_fitted_changes_nothing() -> None:
    (split, *_) = splits_of(MADE, tiny_recipe())
    batch = next(split.batches(4))
    path = LinearPath((split.audio.dim, 1), (split.text.dim, 2), 3, ("audio", "text"))
    assert torch.equal(path(batch), torch.zeros(len(batch.labels), 3))


def test_scores_that_are_all_alike_say_nothing_and_those_of_a_shrunk_model_are_not_blown_up() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=200)
    deep, shrunk = random.normal(size=(200, 1)), 0.7 * truth[:, None]
    assert path_weights(deep, shrunk, truth, scores=True)[1] <= 1
    assert path_weights(deep, shrunk, np.zeros(200), scores=True) == (0.5, 0.5)


def test_a_corpus_with_a_single_label_is_learned_and_says_so() -> None:
    recipe = tiny_recipe({"name": "audio", "modalities": "audio"}, epochs=1)
    features = make_features(Made(labels=["joy"], unlabelled=0.0))
    train, validation = (
        load_split(features, name, modalities="audio", audio_frames=8) for name in ("train", "validation")
    )
    found = fit(train, validation, recipe, 0, classes=1)
    assert np.isfinite(found.answers["fused"]).all()


@pytest.mark.parametrize("target", ["label", "score"])
def test_a_validation_split_of_one_answer_is_named_as_what_nothing_could_be_chosen_by(target: Any) -> None:
    recipe = tiny_recipe({"name": "audio"}, target=target)
    train, validation, _ = splits_of(replace(MADE, scored=target == "score", unlabelled=0.0), recipe)
    answer = {"labels": torch.zeros_like(validation.labels), "scores": torch.ones_like(validation.scores)}
    task, same = find_task(target, 3), replace(validation, **answer)
    found = find_signs(fit(train, same, recipe, 0, classes=3), task, (train, same), recipe)
    assert found[-1] == f"validation has one {target} alone, by which no epoch or weight could be chosen"
    assert not any("is not better than the floor" in sign for sign in found)
