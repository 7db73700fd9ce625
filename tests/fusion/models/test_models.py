"""What holds for every model under every setting: masks, neighbours, order, empty modalities, gradients, saving."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from fusion.batch import Batch
from fusion.layers import primitives
from fusion.models import MODELS, SharedParams, Sizes, Stage, build_model, find_model
from pipeline.settings import SettingsError
from tests.fusion.batches import (
    assert_same,
    batch_for,
    changed,
    influence,
    make,
    make_batch,
    name_of,
    only,
    regrouped,
    tensors_in,
    tensors_of,
    total_loss,
)

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "hbaf": [
        {"context": "none"},
        {"context": "text"},
        {"context": "conversation"},
        {"context_turns": 1},
        {"direction": "past"},
        {"levels": "raw"},
        {"levels": "context"},
        {"levels": "context", "context": "none"},
        {"self_attention": False},
        {"cross_attention": False},
        {"gate": False},
        {"relevance": False},
        {"residual": False},
        {"conversation_encoder": "none"},
        {"auxiliary": False},
        {"contrastive": False},
        {"attends": "turns"},
        {"attends": "turns", "direction": "past", "context": "none", "conversation_encoder": "none"},
        {"attends": "turns", "levels": "raw", "self_attention": False},
        {
            "context": "none",
            "levels": "raw",
            "cross_attention": False,
            "residual": False,
            "conversation_encoder": "none",
            "auxiliary": False,
            "contrastive": False,
        },
    ],
    "hcam": [
        {"stages": ("utterance", "fusion")},
        {"stages": ("conversation", "fusion")},
        {"stages": ("utterance", "conversation")},
        {"stages": ("utterance",)},
        {"stages": ("fusion",)},
        {"training": "joint"},
        {"training": "joint", "auxiliary": False},
        {"training": "joint", "stages": ("utterance", "conversation")},
        {"freeze": False},
        {"direction": "past"},
        {"self_attention": False},
        {"co_attention": "audio"},
        {"co_attention": "text"},
        {"co_attention": "none"},
        {"blocks": 0},
        {"recurrent_layers": 2},
        {"supervised": False},
        {"ensemble": True},
        {"ensemble": True, "stages": ("utterance", "conversation")},
        {"pooling": "mean", "text_pooling": "last"},
        {"pooling": "last", "self_attention": False, "recurrent_layers": 3},
        {"context_layers": 2, "context_skip": True},
        {"turns": "own_speaker"},
        {"turns": "other_speakers", "stages": ("conversation",)},
        {"turns": ("all", "own_speaker", "other_speakers", "neighbours")},
        {"turns": ("own_speaker", "neighbours"), "direction": "past", "context_skip": True, "fusion_skip": True},
        {"attention_dim": 2},
        {"attention_dim": 6, "heads": 3},  # which does not divide dim
        {"fusion_skip": True, "blocks": 3},
        {"head": "linear"},
        {"contrast": "views"},
        {"contrast": "views", "training": "joint"},
        {"contrast": "views", "freeze": False, "stages": ("utterance", "conversation")},
    ],
    "audio": [{"conversation_encoder": "none"}, {"direction": "past"}],
    "text": [{"conversation_encoder": "none"}, {"direction": "past"}],
    "concat": [{"conversation_encoder": "none"}, {"direction": "past"}],
    "crossmodal": [{"conversation_encoder": "none"}, {"direction": "past"}, {"blocks": 1}, {"self_attention": False}],
    "tfn": [{"conversation_encoder": "none"}, {"direction": "past"}, {"width": 16}],
    "lmf": [{"conversation_encoder": "none"}, {"direction": "past"}, {"width": 16, "rank": 1}],
    "misa": [
        {"conversation_encoder": "none"},
        {"direction": "past"},
        {"similarity": 0, "difference": 0},
        {"reconstruction": 0},
    ],
    "mult": [{"conversation_encoder": "none"}, {"direction": "past"}, {"blocks": 1, "self_blocks": 1}],
    "dialoguernn": [{"direction": "past"}, {"attention": False}, {"direction": "past", "attention": False}],
    "dialoguegcn": [
        {"conversation_encoder": "none"},
        {"direction": "past"},
        {"attention": False},
        {"past_turns": 1, "future_turns": 0},
    ],
    "experts": [{"conversation_encoder": "none"}, {"direction": "past"}, {"consistency": 0}],
}
CASES = [
    pytest.param(name, setting, id=f"{name} {name_of(setting)}")
    for name, several in SETTINGS.items()
    for setting in [{}, *several, {"audio_layers": 3, "text_layers": 2}]
]
every_case = pytest.mark.parametrize(("name", "setting"), CASES)
every_model = pytest.mark.parametrize("name", MODELS)


def lengthen(x: Tensor, by: int, seed: int) -> Tensor:
    """Longer along the second axis, by noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([x, 10 * torch.randn(x.shape[0], by, *x.shape[2:], generator=generator)], dim=1)


def widen(mask: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, by), value=False)


@torch.no_grad()
def given_to(stage: Stage, batch: Batch) -> Batch:
    """What the frozen stages before make of the batch."""
    return stage.encode(batch) if stage.encode else batch


def test_every_model_is_tried() -> None:
    assert set(SETTINGS) == set(MODELS)


@pytest.mark.sampled(4)
@pytest.mark.arithmetic
@every_case
def test_the_way_of_few_operations_gives_the_same_answers_and_gradients(
    name: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, tokens = [3, 2, 0, 4, 1, 2, 3, 4], [2, 1, 3, 0, 4, 1, 2, 2]
    model, layers = make(name, **setting), {key: value for key, value in setting.items() if key.endswith("_layers")}
    batch = regrouped(make_batch([3, 1, 4], frames, tokens, **layers), [[2, 5], [0, 1, 3, 4, 6, 7]])
    found = []
    for few in (False, True):
        monkeypatch.setattr(primitives, "dominate", lambda x, few=few: few)
        model.zero_grad()
        output = model(batch)
        total_loss(output, batch, model.stages()[-1].branches).backward()
        found.append((tensors_of(output), {key: one.grad for key, one in model.named_parameters()}))
    (answers, gradients), (few_answers, few_gradients) = found
    torch.testing.assert_close(few_answers, answers, rtol=0, atol=1e-6)
    reached = {key: gradient for key, gradient in gradients.items() if gradient is not None}
    assert reached
    torch.testing.assert_close({key: few_gradients[key] for key in reached}, reached, rtol=1e-4, atol=1e-6)
    assert all(few_gradients[key] is None for key in gradients.keys() - reached.keys())


@every_case
def test_padding_changes_nothing(name: str, setting: dict[str, Any]) -> None:
    model, batch = make(name, **setting), batch_for(setting)
    given = tensors_in(batch)
    padded = Batch.padded(
        audio=lengthen(given["audio"], 3, seed=1),
        audio_mask=widen(given["audio_mask"], 3),
        text=lengthen(given["text"], 2, seed=2),
        text_mask=widen(given["text_mask"], 2),
        labels=batch.labels,
        scores=batch.scores,
        turn_mask=widen(batch.turns.mask, 2),
        speakers=batch.turns.speakers,
    )
    assert_same(model(padded), model(batch))


@pytest.mark.sampled(4)
@every_case
def test_groups_change_nothing(name: str, setting: dict[str, Any]) -> None:
    model, grouped = make(name, **setting), regrouped(batch_for(setting), [[6, 1], [0, 5, 3, 2], [7, 4]])
    batch = grouped.joined()
    assert_same(model(grouped), model(batch))
    views, expected = model(grouped, views=True).views, model(batch, views=True).views
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-6)


@pytest.mark.arithmetic
@every_model
@settings(max_examples=10, deadline=None)
@given(
    turns=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    direction=st.sampled_from(["past", "both"]),
    data=st.data(),
)
@pytest.mark.sampled(4)
def test_batch_neighbours_change_nothing(name: str, turns: list[int], direction: str, data: st.DataObject) -> None:
    lengths = st.lists(st.integers(0, 4), min_size=sum(turns), max_size=sum(turns))
    batch = make_batch(turns, data.draw(lengths), data.draw(lengths))
    model = make(name, direction=direction)
    together = tensors_of(model(batch))
    first = 0
    for conversation, count in enumerate(turns):
        own = slice(first, first + count)
        alone = tensors_of(model(only(batch, own, batch.turns.mask[conversation : conversation + 1])))
        expected = {part: value[own] for part, value in together.items()}
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)  # 2.4e-7 was seen, from AVX2 to AMX
        first += count


@every_model
def test_the_order_of_conversations_changes_nothing(name: str) -> None:
    model, batch = make(name), make_batch([2, 3])
    order = torch.tensor([2, 3, 4, 0, 1])
    found = tensors_of(model(only(batch, order, batch.turns.mask.flip(0))))
    expected = {part: value[order] for part, value in tensors_of(model(batch)).items()}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


EMPTY = {
    "some empty": ([2, 0, 1, 3, 0], [1, 2, 0, 3, 0]),
    "no audio at all": ([0, 0, 0, 0, 0], [1, 2, 3, 1, 2]),
    "no text at all": ([1, 2, 3, 1, 2], [0, 0, 0, 0, 0]),
    "nothing at all": ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "setting", "empty"),
    [
        *(pytest.param(*case.values, "some empty", id=f"{case.id} some empty") for case in CASES),
        *((name, {}, empty) for name in MODELS for empty in list(EMPTY)[1:]),
        *(("hcam", setting, "nothing at all") for setting in SETTINGS["hcam"]),
    ],
)
def test_empty_modalities_give_finite_outputs_and_gradients(name: str, setting: dict[str, Any], empty: str) -> None:
    frames, tokens = EMPTY[empty]
    layers = {key: setting[key] for key in ("audio_layers", "text_layers") if key in setting}
    model, batch = make(name, **setting), make_batch([3, 2], frames, tokens, **layers)
    shown = model(batch, views=True)
    assert all(value.isfinite().all() for value in [*tensors_of(shown).values(), *shown.views.values()])
    for stage in model.stages():
        given = given_to(stage, batch)
        total_loss(stage.module.train()(given), given, stage.branches).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@every_model
def test_a_withheld_modality_is_the_same_empty_or_all_padding(name: str) -> None:
    model, batch = make(name), make_batch([3, 2])
    for modality in ("audio", "text"):
        mask, values = tensors_in(batch)[f"{modality}_mask"], tensors_in(batch)[modality]
        masked = changed(batch, **{f"{modality}_mask": torch.zeros_like(mask)})
        empty = changed(batch, **{modality: values[:, :0], f"{modality}_mask": mask[:, :0]})
        assert_same(model(empty), model(masked))


@every_model
def test_a_model_of_the_past_sees_no_later_turn(name: str) -> None:
    model = make(name, direction="past")
    for target in range(4):
        seen = influence(model, make_batch([4, 2]), target)
        assert seen[target]
        assert not any(seen[target + 1 :])


@every_model
def test_a_model_of_both_directions_sees_its_conversation_and_no_other(name: str) -> None:
    assert influence(make(name), make_batch([3, 2]), target=1) == [True, True, True, False, False]


@every_case
def test_a_gradient_reaches_every_parameter_in_some_stage_and_no_other_in_any(
    name: str, setting: dict[str, Any]
) -> None:
    model, batch = make(name, dropout=0.0, **setting), batch_for(setting)
    names = {id(weight): path for path, weight in model.named_parameters()}
    reached: set[str] = set()
    for stage in model.stages():
        model.zero_grad()
        given = given_to(stage, batch)
        total_loss(stage.module(given), given, stage.branches).backward()
        moving = {path for path, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
        learning = {names[id(weight)] for branch in stage.branches.values() for weight in branch.parameters()}
        assert moving == learning, stage.name
        reached |= moving
    assert reached == set(names.values())


@every_model
def test_branches_of_a_stage_share_no_weight(name: str) -> None:
    for stage in make(name).stages():
        weights = [id(weight) for branch in stage.branches.values() for weight in branch.parameters()]
        assert len(weights) == len(set(weights))


@every_case
@pytest.mark.sampled(4)
def test_a_saved_model_gives_identical_answers(name: str, setting: dict[str, Any], tmp_path: Path) -> None:
    model, batch = make(name, **setting), batch_for(setting)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, strict=True).eval()
    for part, value in tensors_of(model(batch)).items():
        assert torch.equal(tensors_of(loaded(batch))[part], value)


@every_model
def test_config_json_holds_every_argument_and_nothing_else(name: str, tmp_path: Path) -> None:
    make(name, dropout=0.5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) == {"params", "sizes", *(("wanted",) if find_model(name).losses else ())}
    assert set(config["params"]) == set(find_model(name).Params.model_fields)
    assert (config["params"]["dropout"], config["sizes"]["audio_layers"]) == (0.5, 1)


@every_model
def test_views_are_given_only_when_asked_and_change_nothing(name: str) -> None:
    model, batch = make(name), make_batch([3, 2])
    shown, plain = model(batch, views=True), model(batch)
    assert not plain.views
    assert shown.views
    assert_same(shown, plain)
    assert not any(value.requires_grad for value in shown.views.values())


@every_model
def test_every_model_can_be_pushed_to_a_hub(name: str) -> None:
    assert isinstance(make(name), PyTorchModelHubMixin)


@every_model
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9}, "dim is 9: must be even"),
        ({"dim": 10, "heads": 4}, "heads is 4: must divide model.dim, which is 10"),
        ({"direction": "future"}, "'past' or 'both'"),
    ],
)
def test_settings_that_make_no_model_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    params = MODELS[name].Params
    arguments = {"heads": 1} | arguments if "heads" in params.model_fields else arguments
    if "heads" in arguments and "heads" not in params.model_fields:
        message = "Extra inputs are not permitted"
    with pytest.raises(ValidationError, match=message):
        params(**arguments)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"model.name is 'hbfa'.*did you mean 'hbaf'\?"):
        build_model("hbfa", SharedParams(), Sizes(5, 6, classes=3))


def test_a_baseline_of_one_modality_does_not_look_at_the_other() -> None:
    batch = make_batch([3, 2])
    other = changed(batch, text=tensors_in(batch)["text"] + 1)
    assert_same(make("audio")(other), make("audio")(batch))
    assert not torch.equal(make("text")(other).logits, make("text")(batch).logits)
    assert not torch.equal(make("concat")(other).logits, make("concat")(batch).logits)
