"""HBAF: what may and may not influence its answers, and what every switch takes away."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.batch import Batch, Output
from fusion.losses import fusion_loss
from fusion.models import MODELS, build_model
from fusion.models.hbaf import HBAF
from pipeline.settings import ErcError, SettingsError

AUDIO_DIM, TEXT_DIM, CLASSES, DIM, HEADS = 5, 6, 3, 8, 2
SIZES = {"audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM, "classes": CLASSES, "dim": DIM, "heads": HEADS}

SWITCHES: list[dict[str, Any]] = [
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
]
SMALLEST = {
    "context": "none",
    "levels": "raw",
    "cross_attention": False,
    "residual": False,
    "conversation_encoder": "none",
    "auxiliary": False,
    "contrastive": False,
}
EVERY_SETTING = [{}, *SWITCHES, SMALLEST, {"audio_layers": 3, "text_layers": 2}]


def name_of(setting: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "default"


every_setting = pytest.mark.parametrize("setting", EVERY_SETTING, ids=name_of)


def make_model(**arguments: Any) -> HBAF:
    torch.manual_seed(0)
    return HBAF(**(SIZES | arguments)).eval()


def make_batch(
    turns: list[int], frames: list[int] | None = None, tokens: list[int] | None = None, seed: int = 0, **sizes: int
) -> Batch:
    """Conversations of so many turns; `frames` and `tokens` are the lengths of each utterance, 1 to 4 by default."""
    generator = torch.Generator().manual_seed(seed)

    def draw(lengths: list[int] | None, dim: int, layers: int) -> tuple[Tensor, Tensor]:
        count = torch.tensor(lengths) if lengths else torch.randint(1, 5, (sum(turns),), generator=generator)
        mask = torch.arange(int(count.max())) < count[:, None]
        stored = (layers, dim) if layers > 1 else (dim,)
        return torch.randn(*mask.shape, *stored, generator=generator), mask

    return Batch(
        *draw(frames, AUDIO_DIM, sizes.get("audio_layers", 1)),
        *draw(tokens, TEXT_DIM, sizes.get("text_layers", 1)),
        labels=torch.randint(CLASSES, (sum(turns),), generator=generator),
        turn_mask=torch.arange(max(turns)) < torch.tensor(turns)[:, None],
    )


def batch_for(setting: dict[str, Any]) -> Batch:
    return make_batch([3, 1, 4], **{key: value for key, value in setting.items() if key.endswith("_layers")})


def total_loss(output: Output, batch: Batch) -> Tensor:
    return fusion_loss(
        output,
        batch.labels,
        batch.audio_mask.any(dim=1),
        batch.text_mask.any(dim=1),
        auxiliary=0.3,
        absolute=0.1,
        relative=0.1,
        temperature=0.1,
        label_aware=False,
    ).total


def tensors_of(output: Output) -> dict[str, Tensor]:
    names = ("logits", "audio_logits", "text_logits", "audio", "text")
    return {name: value for name in names if (value := getattr(output, name)) is not None}


def assert_same(found: Output, expected: Output) -> None:
    torch.testing.assert_close(tensors_of(found), tensors_of(expected), rtol=0, atol=1e-6)


def lengthen(x: Tensor, by: int, seed: int) -> Tensor:
    """Longer along the second axis, by noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([x, 10 * torch.randn(x.shape[0], by, *x.shape[2:], generator=generator)], dim=1)


def widen(mask: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, by), value=False)


@every_setting
def test_padding_changes_nothing(setting: dict[str, Any]) -> None:
    model, batch = make_model(**setting), batch_for(setting)
    padded = replace(
        batch,
        audio=lengthen(batch.audio, 3, seed=1),
        audio_mask=widen(batch.audio_mask, 3),
        text=lengthen(batch.text, 2, seed=2),
        text_mask=widen(batch.text_mask, 2),
        turn_mask=widen(batch.turn_mask, 2),
    )
    assert_same(model(padded), model(batch))


@settings(max_examples=15, deadline=None)
@given(
    turns=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    direction=st.sampled_from(["past", "both"]),
    data=st.data(),
)
def test_batch_neighbours_change_nothing(turns: list[int], direction: str, data: st.DataObject) -> None:
    lengths = st.lists(st.integers(0, 4), min_size=sum(turns), max_size=sum(turns))
    batch = make_batch(turns, data.draw(lengths), data.draw(lengths))
    model = make_model(direction=direction)
    together = tensors_of(model(batch))
    first = 0
    for conversation, count in enumerate(turns):
        own = slice(first, first + count)
        alone = model(
            Batch(
                *(x[own] for x in (batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.labels)),
                turn_mask=batch.turn_mask[conversation : conversation + 1],
            )
        )
        assert_same(alone, Output(**{name: value[own] for name, value in together.items()}))
        first += count


def test_the_order_of_conversations_changes_nothing() -> None:
    model, batch = make_model(), make_batch([2, 3])
    order = torch.tensor([2, 3, 4, 0, 1])
    swapped = Batch(
        *(x[order] for x in (batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.labels)),
        turn_mask=batch.turn_mask.flip(0),
    )
    expected = {name: value[order] for name, value in tensors_of(model(batch)).items()}
    assert_same(model(swapped), Output(**expected))


@every_setting
@pytest.mark.parametrize(
    ("frames", "tokens"),
    [
        ([2, 0, 1, 3, 0], [1, 2, 0, 3, 0]),
        ([0, 0, 0, 0, 0], [1, 2, 3, 1, 2]),
        ([1, 2, 3, 1, 2], [0, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
    ids=["some empty", "no audio at all", "no text at all", "nothing at all"],
)
def test_empty_modalities_give_finite_outputs_and_gradients(
    setting: dict[str, Any], frames: list[int], tokens: list[int]
) -> None:
    layers = {key: value for key, value in setting.items() if key.endswith("_layers")}
    model, batch = make_model(**setting).train(), make_batch([3, 2], frames, tokens, **layers)
    output = model(batch, views=True)
    total_loss(output, batch).backward()
    assert all(value.isfinite().all() for value in tensors_of(output).values())
    assert all(value.isfinite().all() for value in output.views.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_withheld_modality_is_the_same_empty_or_all_padding() -> None:
    model, batch = make_model(), make_batch([3, 2])
    masked = replace(batch, text_mask=torch.zeros_like(batch.text_mask))
    empty = replace(batch, text=batch.text[:, :0], text_mask=batch.text_mask[:, :0])
    assert_same(model(empty), model(masked))


def influence(model: HBAF, batch: Batch, target: int) -> list[bool]:
    """Which utterances the answers for the utterance `target` depend on."""
    audio, text = batch.audio.clone().requires_grad_(), batch.text.clone().requires_grad_()
    output = model(replace(batch, audio=audio, text=text))
    torch.stack([value[target].square().sum() for value in tensors_of(output).values()]).sum().backward()
    assert audio.grad is not None
    assert text.grad is not None
    return (audio.grad.flatten(1).any(dim=1) | text.grad.flatten(1).any(dim=1)).tolist()


@pytest.mark.parametrize("context", ["none", "text", "conversation", "both"])
@pytest.mark.parametrize("encoder", ["gru", "none"])
def test_a_model_of_the_past_sees_no_later_turn(context: str, encoder: str) -> None:
    model = make_model(direction="past", context=context, conversation_encoder=encoder)
    for target in range(4):
        seen = influence(model, make_batch([4, 2]), target)
        assert not any(seen[target + 1 :])


def test_a_later_turn_does_not_change_earlier_answers_of_a_model_of_the_past() -> None:
    model, batch = make_model(direction="past"), make_batch([4])
    changed = replace(batch, audio=batch.audio.clone(), text=batch.text.clone())
    changed.audio[3] += 1
    changed.text[3] += 1
    before, after = model(batch).logits, model(changed).logits
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_a_model_of_both_directions_sees_its_conversation_and_no_other() -> None:
    assert influence(make_model(), make_batch([3, 2]), target=1) == [True, True, True, False, False]


def test_context_decides_whether_turns_see_each_other() -> None:
    model = make_model(context="text", conversation_encoder="none")
    assert influence(model, make_batch([4]), target=2) == [False, False, True, False]
    model = make_model(context="conversation", conversation_encoder="none", direction="past")
    assert influence(model, make_batch([4]), target=2) == [True, True, True, False]


@every_setting
def test_a_gradient_reaches_every_parameter(setting: dict[str, Any]) -> None:
    model, batch = make_model(dropout=0.0, **setting), batch_for(setting)
    total_loss(model(batch), batch).backward()
    unreached = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert unreached == []


@pytest.mark.parametrize(
    ("setting", "gone"),
    [
        ({"context": "none"}, "levels.context.augment."),
        ({"context": "text"}, "levels.context.augment.sources.conversation."),
        ({"levels": "raw"}, "levels.context."),
        ({"levels": "context"}, "levels.raw."),
        ({"levels": "raw"}, "audio_mix."),
        ({"self_attention": False}, "levels.raw.audio.intra."),
        ({"self_attention": False}, "levels.raw.audio.gate."),
        ({"cross_attention": False}, "levels.context.text.inter."),
        ({"cross_attention": False}, "levels.context.text.relevance."),
        ({"cross_attention": False}, "levels.context.text.gate."),
        ({"gate": False}, "levels.raw.text.gate."),
        ({"relevance": False}, "levels.raw.text.relevance."),
        ({"conversation_encoder": "none"}, "audio_encoder."),
        ({"auxiliary": False}, "text_head."),
        ({"contrastive": False}, "audio_embedding."),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_a_switch_removes_its_part_with_all_parameters(setting: dict[str, Any], gone: str) -> None:
    whole, reduced = make_model(), make_model(**setting)
    assert any(name.startswith(gone) for name in whole.state_dict())
    assert not any(name.startswith(gone) for name in reduced.state_dict())
    assert set(reduced.state_dict()) < set(whole.state_dict())


def test_without_residual_the_same_parameters_give_another_answer() -> None:
    whole, reduced, batch = make_model(), make_model(residual=False), make_batch([3])
    reduced.load_state_dict(whole.state_dict())
    assert not torch.allclose(whole(batch).logits, reduced(batch).logits)


def test_without_cross_attention_context_and_product_modalities_do_not_meet() -> None:
    model, batch = make_model(cross_attention=False, context="none"), make_batch([3])
    silent = replace(batch, audio=torch.zeros_like(batch.audio))
    assert torch.equal(model(batch).text_logits, model(silent).text_logits)
    assert not torch.equal(model(batch).logits, model(silent).logits)


def test_the_gate_chooses_between_the_modality_itself_and_the_other() -> None:
    model, batch = make_model(levels="raw", conversation_encoder="none"), make_batch([2])
    silent = replace(batch, audio=torch.zeros_like(batch.audio))
    torch.nn.init.constant_(model.levels["raw"].text.gate.linear.bias, 100.0)  # open: intra-modal alone
    torch.testing.assert_close(model(batch).text_logits, model(silent).text_logits)
    torch.nn.init.constant_(model.levels["raw"].text.gate.linear.bias, -100.0)  # closed: inter-modal alone
    assert not torch.allclose(model(batch).text_logits, model(silent).text_logits)


def test_a_relation_judged_false_has_no_influence() -> None:
    model, batch = make_model(levels="raw", conversation_encoder="none", gate=False), make_batch([2])
    silent = replace(batch, audio=torch.zeros_like(batch.audio))
    torch.nn.init.constant_(model.levels["raw"].text.relevance.linear.bias, -100.0)
    torch.testing.assert_close(model(batch).text_logits, model(silent).text_logits)


def test_outputs_have_the_shapes_of_the_contract() -> None:
    output = make_model()(make_batch([3, 2]))
    shapes = {name: tuple(value.shape) for name, value in tensors_of(output).items()}
    assert shapes == {
        "logits": (5, CLASSES),
        "audio_logits": (5, CLASSES),
        "text_logits": (5, CLASSES),
        "audio": (5, DIM),
        "text": (5, DIM),
    }
    assert output.audio is not None
    torch.testing.assert_close(output.audio.norm(dim=1), torch.ones(5))


def test_a_model_without_heads_and_embeddings_returns_none_for_them() -> None:
    output = make_model(auxiliary=False, contrastive=False)(make_batch([3, 2]))
    assert set(tensors_of(output)) == {"logits"}


def test_views_have_the_documented_names_and_shapes() -> None:
    batch = make_batch([3, 2], [4, 1, 2, 3, 4], [1, 2, 3, 1, 2], audio_layers=2)
    output = make_model(audio_layers=2, context_turns=2)(batch, views=True)
    shapes = {name: tuple(value.shape) for name, value in output.views.items()}
    level = {
        "audio.gate": (5, 4, DIM),
        "audio.relevance": (5, 4, 1),
        "audio.intra": (5, HEADS, 4, 4),
        "audio.inter": (5, HEADS, 4, 3),
        "text.gate": (5, 3, DIM),
        "text.relevance": (5, 3, 1),
        "text.intra": (5, HEADS, 3, 3),
        "text.inter": (5, HEADS, 3, 4),
    }
    assert shapes == {
        **{f"levels.{name}.{part}": shape for name in ("raw", "context") for part, shape in level.items()},
        "levels.context.augment.gate": (5, 4, DIM),
        "levels.context.augment.attention": (5, HEADS, 4, 3 + 4),
        "levels.context.augment.sources.conversation.pool.weights": (5, 3),
        "audio_input.mix.weights": (2,),
        "audio_mix.weights": (2,),
        "text_mix.weights": (2,),
        "audio_pool.weights": (5, 4),
        "text_pool.weights": (5, 3),
    }


def test_views_are_given_only_when_asked_and_change_nothing() -> None:
    model, batch = make_model(), make_batch([3, 2])
    shown, plain = model(batch, views=True), model(batch)
    assert not plain.views
    assert_same(shown, plain)
    assert not any(value.requires_grad for value in shown.views.values())


def test_views_are_zero_at_padding_and_attention_sums_to_one_elsewhere() -> None:
    batch = make_batch([3, 2], [4, 1, 0, 3, 4], [1, 2, 3, 0, 2])
    masks = {"audio": batch.audio_mask, "text": batch.text_mask}
    views = make_model()(batch, views=True).views
    for level in ("raw", "context"):
        for own, other in (("audio", "text"), ("text", "audio")):
            padding = ~masks[own]
            assert not views[f"levels.{level}.{own}.gate"][padding].any()
            assert not views[f"levels.{level}.{own}.relevance"][padding].any()
            for kind, keys in (("intra", masks[own]), ("inter", masks[other])):
                weights = views[f"levels.{level}.{own}.{kind}"].transpose(1, 2)  # (utterances, positions, heads, keys)
                sums = (masks[own] & keys.any(dim=1)[:, None])[..., None].expand(-1, -1, HEADS).float()
                torch.testing.assert_close(weights.sum(dim=3), sums)
                assert not weights.masked_select(~keys[:, None, None]).any()
    for own, mask in masks.items():
        torch.testing.assert_close(views[f"{own}_pool.weights"].sum(dim=1), mask.any(dim=1).float())


@pytest.mark.parametrize(
    ("setting", "absent"),
    [({"gate": False}, "gate"), ({"relevance": False}, "relevance"), ({"self_attention": False}, "intra")],
    ids=["gate", "relevance", "intra"],
)
def test_a_part_that_is_switched_off_shows_nothing(setting: dict[str, Any], absent: str) -> None:
    views = make_model(**setting)(make_batch([3]), views=True).views
    assert not any(name.endswith(f"audio.{absent}") for name in views)


@every_setting
def test_a_saved_model_gives_identical_answers(setting: dict[str, Any], tmp_path: Path) -> None:
    model, batch = make_model(**setting), batch_for(setting)
    model.save_pretrained(tmp_path)
    loaded = HBAF.from_pretrained(tmp_path, strict=True).eval()
    for name, value in tensors_of(model(batch)).items():
        assert torch.equal(getattr(loaded(batch), name), value)


def test_further_keys_in_config_json_are_left_alone(tmp_path: Path) -> None:
    model, batch = make_model(gate=False), make_batch([2])
    model.save_pretrained(tmp_path, config={**model._hub_mixin_config, "model": "hbaf", "labels": ["joy"], "seed": 3})
    loaded = HBAF.from_pretrained(tmp_path, strict=True).eval()
    assert json.loads((tmp_path / "config.json").read_text())["labels"] == ["joy"]
    assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_config_json_holds_every_argument_and_nothing_else(tmp_path: Path) -> None:
    make_model(context="text").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) == set(inspect.signature(HBAF).parameters)
    assert {"context": "text", "levels": "both", "audio_layers": 1}.items() <= config.items()


def test_the_same_seed_gives_the_same_gradients() -> None:
    def gradients() -> list[Tensor]:
        model, batch = make_model().train(), make_batch([3, 2])
        total_loss(model(batch), batch).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    assert all(torch.equal(first, second) for first, second in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("part", ["context", "conversation_encoder"])
def test_a_small_model_learns_what_only_the_turn_before_tells(part: str) -> None:
    off: dict[str, Any] = {"conversation_encoder": "none"} if part == "context" else {"context": "none"}
    words = torch.randint(CLASSES, (12, 4), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        audio=torch.ones(48, 1, AUDIO_DIM),
        audio_mask=torch.ones(48, 1, dtype=torch.bool),
        text=torch.eye(TEXT_DIM)[words.flatten()][:, None],
        text_mask=torch.ones(48, 1, dtype=torch.bool),
        labels=torch.cat([torch.full((12, 1), -1), words[:, :-1]], dim=1).flatten(),
        turn_mask=torch.ones(12, 4, dtype=torch.bool),
    )
    model = make_model(dropout=0.0, direction="past", levels="context", context_turns=1, contrastive=False, **off)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        total_loss(model(batch), batch).backward()
        optimizer.step()
    labelled = batch.labels >= 0
    right = model(batch).logits.argmax(dim=1) == batch.labels
    assert right[labelled].float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"self_attention": False, "cross_attention": False}, "both false: nothing is left to fuse"),
        ({"dim": 10, "heads": 4}, r"model.dim is 10: expected a multiple of model.heads \(4\)"),
        ({"dim": 9, "heads": 3}, "and even"),
        ({"context_turns": 0}, "model.context_turns is 0: expected at least 1"),
        ({"context": "audio"}, "model.context is 'audio': expected one of none, text, conversation, both"),
        ({"direction": "future"}, "model.direction is 'future': expected one of past, both"),
    ],
)
def test_settings_that_make_no_model_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ErcError, match=message):
        HBAF(**(SIZES | arguments))


def test_every_model_of_the_table_can_be_built_and_pushed_to_a_hub() -> None:
    for name in MODELS:
        model = build_model(name, audio_dim=5, text_dim=6, audio_layers=1, text_layers=1, classes=3, dim=8, heads=2)
        assert isinstance(model, PyTorchModelHubMixin)
        assert model(make_batch([2])).logits.shape == (2, 3)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"model.name is 'hbfa'.*did you mean 'hbaf'\?"):
        build_model("hbfa", audio_dim=5, text_dim=6, audio_layers=1, text_layers=1, classes=3)
