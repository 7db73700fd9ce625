"""HBAF: what may and may not influence its answers, and what every switch takes away."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fusion.batch import Batch
from fusion.models import HBAF, HBAFParams
from tests.fusion.batches import (
    AUDIO_DIM,
    CLASSES,
    DIM,
    HEADS,
    TEXT_DIM,
    changed,
    influence,
    make,
    make_batch,
    name_of,
    tensors_in,
    tensors_of,
    total_loss,
)


def make_model(**arguments: Any) -> HBAF:
    return make("hbaf", **arguments)


@pytest.mark.parametrize("context", ["none", "text", "conversation", "both"])
@pytest.mark.parametrize("encoder", ["gru", "none"])
def test_a_model_of_the_past_sees_no_later_turn(context: str, encoder: str) -> None:
    model = make_model(direction="past", context=context, conversation_encoder=encoder)
    for target in range(4):
        seen = influence(model, make_batch([4, 2]), target)
        assert not any(seen[target + 1 :])


def test_a_later_turn_does_not_change_earlier_answers_of_a_model_of_the_past() -> None:
    model, batch = make_model(direction="past"), make_batch([4])
    later = {name: tensors_in(batch)[name].clone() for name in ("audio", "text")}
    for rows in later.values():
        rows[3] += 1
    before, after = model(batch).logits, model(changed(batch, **later)).logits
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_context_decides_whether_turns_see_each_other() -> None:
    model = make_model(context="text", conversation_encoder="none")
    assert influence(model, make_batch([4]), target=2) == [False, False, True, False]
    model = make_model(context="conversation", conversation_encoder="none", direction="past")
    assert influence(model, make_batch([4]), target=2) == [True, True, True, False]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ({"attends": "positions"}, [False, False, True, False]),
        ({"attends": "turns"}, [True, True, True, True]),
        ({"attends": "turns", "direction": "past"}, [True, True, True, False]),
        ({"attends": "turns", "self_attention": False}, [True, True, True, True]),
        ({"attends": "turns", "cross_attention": False}, [True, True, True, True]),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else "",
)
def test_attends_decides_whether_bimodal_attention_looks_at_other_turns(
    setting: dict[str, Any], seen: list[bool]
) -> None:
    model = make_model(**{"direction": "both", "context": "none", "conversation_encoder": "none"} | setting)
    for rows in (None, [1] * 6):  # any number of frames and tokens, and one of each
        assert influence(model, make_batch([4, 2], rows, rows), target=2) == [*seen, False, False]


def test_a_turn_without_the_modality_is_not_attended_to() -> None:
    model = make_model(attends="turns", context="none", conversation_encoder="none")
    views = model(make_batch([3, 2], [2, 0, 3, 1, 2], [1, 2, 3, 2, 0]), views=True).views
    for level in ("raw", "context"):
        audio, text = (views[f"levels.{level}.{name}.inter"] for name in ("audio", "text"))
        assert audio.shape == text.shape == (5, HEADS, 3)
        assert text.ne(0).all(1).int().tolist() == [[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]]
        assert audio.ne(0).all(1).int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
        torch.testing.assert_close(text[:3].sum(2), torch.ones(3, HEADS))


@pytest.mark.parametrize(
    ("attends", "longest", "said"),
    [
        ("positions", {"audio": 1, "text": 1}, "one row of audio and text: attention to it has nothing to choose from"),
        ("positions", {"audio": 1, "text": 9}, "more than one row of audio: "),
        ("positions", {"text": 1}, "more than one row of text: "),
        ("positions", {"audio": 2, "text": 9}, ""),
        ("positions", {"audio": 0, "text": 9}, ""),
        ("turns", {"audio": 1, "text": 1}, ""),
    ],
)
def test_attention_that_has_nothing_to_choose_from_is_named(attends: Any, longest: dict[str, int], said: str) -> None:
    doubt = HBAFParams(attends=attends).doubt(longest)
    assert said in doubt
    assert bool(doubt) == bool(said)


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
    silent = changed(batch, audio=torch.zeros_like(tensors_in(batch)["audio"]))
    assert torch.equal(model(batch).text_logits, model(silent).text_logits)
    assert not torch.equal(model(batch).logits, model(silent).logits)


def test_the_gate_chooses_between_the_modality_itself_and_the_other() -> None:
    model, batch = make_model(levels="raw", conversation_encoder="none"), make_batch([2])
    silent = changed(batch, audio=torch.zeros_like(tensors_in(batch)["audio"]))
    torch.nn.init.constant_(model.levels["raw"].text.gate.linear.bias, 100.0)  # open: intra-modal alone
    torch.testing.assert_close(model(batch).text_logits, model(silent).text_logits)
    torch.nn.init.constant_(model.levels["raw"].text.gate.linear.bias, -100.0)  # closed: inter-modal alone
    assert not torch.allclose(model(batch).text_logits, model(silent).text_logits)


def test_a_relation_judged_false_has_no_influence() -> None:
    model, batch = make_model(levels="raw", conversation_encoder="none", gate=False), make_batch([2])
    silent = changed(batch, audio=torch.zeros_like(tensors_in(batch)["audio"]))
    torch.nn.init.constant_(model.levels["raw"].text.relevance.linear.bias, -100.0)
    torch.testing.assert_close(model(batch).text_logits, model(silent).text_logits)


def test_outputs_have_the_shapes_of_the_contract() -> None:
    output = make_model()(make_batch([3, 2]))
    shapes = {name: tuple(value.shape) for name, value in tensors_of(output).items()}
    assert shapes == {
        "logits of fused": (5, CLASSES),
        "logits of audio": (5, CLASSES),
        "logits of text": (5, CLASSES),
        "audio": (5, DIM),
        "text": (5, DIM),
    }
    assert output.audio is not None
    torch.testing.assert_close(output.audio.norm(dim=1), torch.ones(5))


def test_a_model_without_heads_and_embeddings_returns_none_for_them() -> None:
    output = make_model(auxiliary=False, contrastive=False)(make_batch([3, 2]))
    assert set(tensors_of(output)) == {"logits of fused"}


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


def test_views_are_zero_at_padding_and_attention_sums_to_one_elsewhere() -> None:
    batch = make_batch([3, 2], [4, 1, 0, 3, 4], [1, 2, 3, 0, 2])
    masks = {name: tensors_in(batch)[f"{name}_mask"] for name in ("audio", "text")}
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


def test_further_keys_in_config_json_are_left_alone(tmp_path: Path) -> None:
    model, batch = make_model(gate=False), make_batch([2])
    model.save_pretrained(tmp_path, config={**model._hub_mixin_config, "model": "hbaf", "labels": ["joy"], "seed": 3})
    loaded = HBAF.from_pretrained(tmp_path, strict=True).eval()
    assert json.loads((tmp_path / "config.json").read_text())["labels"] == ["joy"]
    assert torch.equal(loaded(batch).logits, model(batch).logits)


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
    batch = Batch.padded(
        audio=torch.ones(48, 1, AUDIO_DIM),
        audio_mask=torch.ones(48, 1, dtype=torch.bool),
        text=torch.eye(TEXT_DIM)[words.flatten()][:, None],
        text_mask=torch.ones(48, 1, dtype=torch.bool),
        labels=torch.cat([torch.full((12, 1), -1), words[:, :-1]], dim=1).flatten(),
        scores=torch.full((48,), torch.nan),
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
        ({"context_turns": 0}, "greater than or equal to 1"),
        ({"context": "audio"}, "'none', 'text', 'conversation' or 'both'"),
    ],
)
def test_settings_that_make_no_model_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HBAFParams(**arguments)
