"""HCAM: what every switch takes away, and what the stages may and may not do to each other."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fusion.batch import Batch
from fusion.models import HCAMParams
from tests.fusion.batches import CLASSES, DIM, changed, influence, make, make_batch, name_of, tensors_in, tensors_of


@pytest.mark.parametrize(
    ("setting", "gone"),
    [
        ({"stages": ("conversation", "fusion")}, "chain.parts.utterance.audio.head."),
        ({"stages": ("conversation", "fusion")}, "chain.parts.utterance.text.encoder.layers."),
        ({"stages": ("utterance", "fusion")}, "chain.parts.conversation."),
        ({"stages": ("utterance", "conversation")}, "chain.parts.fusion."),
        ({"training": "joint", "auxiliary": False}, "chain.parts.conversation.text.head."),
        ({"self_attention": False}, "chain.parts.utterance.text.encoder.layers.1."),
        ({"self_attention": False}, "chain.parts.conversation.text.encoder.attention."),
        ({"self_attention": False}, "chain.parts.fusion.blocks.0.audio_to_audio."),
        ({"co_attention": "audio"}, "chain.parts.fusion.blocks.0.text_to_audio."),
        ({"co_attention": "text"}, "chain.parts.fusion.blocks.1.audio_to_text."),
        ({"co_attention": "none"}, "chain.parts.fusion.blocks.1.audio_to_text."),
        ({"blocks": 1}, "chain.parts.fusion.blocks.1."),
        ({"blocks": 0}, "chain.parts.fusion.blocks.0."),
        ({"supervised": False}, "chain.parts.fusion.head.embed."),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_a_switch_removes_its_part_with_all_parameters(setting: dict[str, Any], gone: str) -> None:
    whole, reduced = make("hcam").state_dict(), make("hcam", **setting).state_dict()
    assert any(name.startswith(gone) for name in whole)
    assert not any(name.startswith(gone) for name in reduced)
    assert len(reduced) < len(whole)


def test_a_second_recurrent_layer_is_one_more_of_the_same() -> None:
    def count(names: Iterable[str]) -> int:
        return sum(".layers." in name and ".grus.0." in name for name in names)

    one, two = make("hcam").state_dict(), make("hcam", recurrent_layers=2).state_dict()
    assert count(two) == 2 * count(one)


ADDED: list[tuple[dict[str, Any], str]] = [
    ({"context_layers": 2}, "chain.parts.conversation.audio.encoder.recurrent.1."),
    ({"context_skip": True}, "chain.parts.conversation.text.encoder.skip."),
    ({"turns": ["all", "neighbours"]}, "chain.parts.conversation.text.encoder.attention.branches.neighbours."),
    ({"fusion_skip": True}, "chain.parts.fusion.audio_skip."),
    ({"contrast": "views"}, "chain.parts.fusion.views.text."),
]


@pytest.mark.parametrize(("setting", "there"), ADDED, ids=[name_of(setting) for setting, _ in ADDED])
def test_a_switch_adds_its_part(setting: dict[str, Any], there: str) -> None:
    plain, more = make("hcam").state_dict(), make("hcam", **setting).state_dict()
    assert any(name.startswith(there) for name in more)
    assert not any(name.startswith(there) for name in plain)


def test_attention_may_be_narrower_than_the_stream() -> None:
    weights = make("hcam", attention_dim=4).state_dict()
    narrow = [one for name, one in weights.items() if name.endswith(("query.weight", "key.weight", "value.weight"))]
    assert {tuple(one.shape) for one in narrow} == {(4, DIM)}
    assert len(narrow) == 3 * (2 + 2 + 2 * 4)  # of each stage: both modalities; both, of both kinds, in each block


def test_a_linear_head_is_a_norm_and_one_layer() -> None:
    heads = [name for name in make("hcam", head="linear").state_dict() if "fusion.head.classify" in name]
    assert {name.rpartition("classify.")[2] for name in heads} == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_pooling_may_differ_between_modalities() -> None:
    model = make("hcam", pooling="mean", text_pooling="last", recurrent_layers=1, self_attention=False)
    encoders = {name: getattr(model.chain.parts["utterance"], name).encoder for name in ("audio", "text")}
    batch = make_batch([2], [3, 0], [4, 2])
    (group,) = batch.groups
    for name, encoder in encoders.items():
        x, mask = group.modality(name)
        (h,) = encoder.layers[0]([encoder.project(x)], [mask])
        half = DIM // 2
        if name == "audio":
            expected = torch.stack([h[0, :3].mean(0), torch.zeros(DIM)])
        else:
            expected = torch.stack([torch.cat([h[n, last, :half], h[n, 0, half:]]) for n, last in enumerate((3, 1))])
        torch.testing.assert_close(encoder(batch, name), expected)


def test_each_branch_attends_to_turns_of_its_kind() -> None:
    speakers = torch.tensor([0, 1, 0, 2])
    batch = changed(make_batch([4], [1, 2, 0, 1], [2, 1, 1, 2]), speakers=speakers)
    model = make("hcam", turns=["all", "own_speaker", "other_speakers", "neighbours"], neighbour_turns=1)
    views = model(batch, views=True).views
    same, near = speakers[:, None] == speakers, (torch.arange(4)[:, None] - torch.arange(4)).abs() <= 1
    allowed = {"all": same | ~same, "own_speaker": same, "other_speakers": ~same, "neighbours": near}
    for modality, present in (("audio", torch.tensor([True, True, False, True])), ("text", torch.ones(4).bool())):
        for branch, pairs in allowed.items():
            weights = views[f"chain.parts.conversation.{modality}.encoder.attention.{branch}"]  # (turns, heads, turns)
            assert torch.equal((weights > 0).all(dim=1), pairs & present), (modality, branch)


@pytest.mark.parametrize(
    ("turns", "uses"),
    [("all", False), (["all", "neighbours"], False), ("own_speaker", True), (["all", "other_speakers"], True)],
)
def test_who_speaks_matters_where_it_is_asked_for(turns: Any, uses: bool) -> None:
    model, batch = make("hcam", turns=turns), make_batch([4, 2])
    other = changed(batch, speakers=torch.tensor([0, 1, 2, 3, 0, 1]))
    assert torch.equal(model(batch).logits, model(other).logits) == (not uses)
    assert HCAMParams(turns=turns).uses_speakers == uses


def test_both_modalities_are_two_views_of_a_turn() -> None:
    model, batch = make("hcam", contrast="views", training="joint"), make_batch([3, 2], [2, 0, 1, 3, 1])
    output = model(batch)
    for one in (output, *output.earlier.values()):
        assert one.pairs.shape == (5, 2, DIM)
        assert not one.embeddings
    assert make("hcam", contrast="views", supervised=False)(batch).pairs is None


def test_each_modality_is_alone_until_the_last_stage() -> None:
    model, batch = make("hcam"), make_batch([3, 2])
    other = changed(batch, audio=tensors_in(batch)["audio"] + 1)
    before, after = tensors_of(model(batch)), tensors_of(model(other))
    for stage in ("utterance", "conversation"):
        assert torch.equal(before[f"logits of {stage}.text"], after[f"logits of {stage}.text"])
        assert not torch.equal(before[f"logits of {stage}.audio"], after[f"logits of {stage}.audio"])
    assert not torch.allclose(before["logits of fused"], after["logits of fused"])


def test_an_utterance_is_alone_until_stage_ii() -> None:
    batch = make_batch([3])
    assert influence(make("hcam", stages=("utterance",)), batch, target=1) == [False, True, False]
    assert influence(make("hcam", stages=("utterance", "conversation")), batch, target=1) == [True, True, True]


def swap_effect(model: Any, batch: Batch, looking: str) -> bool:
    """Whether what stage III makes of modality `looking` depends on the other one."""
    fusion = model.chain.parts["fusion"]
    other = {"audio": "text", "text": "audio"}[looking]
    encoded = model.chain.parts["conversation"].encode(model.chain.parts["utterance"].encode(batch))
    moved = changed(encoded, **{other: tensors_in(encoded)[other] + torch.arange(4.0)[:, None, None]})
    place = slice(0, DIM) if looking == "audio" else slice(DIM, None)
    seen = []
    hook = fusion.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0][:, place]))
    fusion.classify(encoded)
    fusion.classify(moved)
    hook.remove()
    return not torch.allclose(*seen)


@pytest.mark.parametrize(
    ("co_attention", "audio", "text"),
    [("both", True, True), ("audio", True, False), ("text", False, True), ("none", False, False)],
)
def test_co_attention_decides_which_modality_looks_at_the_other(co_attention: str, audio: bool, text: bool) -> None:
    model, batch = make("hcam", co_attention=co_attention), make_batch([4])
    assert swap_effect(model, batch, "audio") == audio
    assert swap_effect(model, batch, "text") == text


def test_hierarchical_training_has_three_stages_of_which_the_earlier_ones_are_frozen() -> None:
    model = make("hcam")
    stages = model.stages()
    assert [stage.name for stage in stages] == ["utterance", "conversation", "fusion"]
    assert [set(stage.branches) for stage in stages] == [{"audio", "text"}, {"audio", "text"}, {"fused"}]
    assert [stage.encode is None for stage in stages] == [True, False, False]
    learning = [{id(w) for b in stage.branches.values() for w in b.parameters()} for stage in stages]
    assert not learning[0] & learning[1]
    assert not learning[1] & learning[2]
    assert sum(map(len, learning)) == len(list(model.parameters()))


def test_without_freezing_later_stages_train_earlier_ones_too() -> None:
    stages = make("hcam", freeze=False).stages()
    assert all(stage.encode is None for stage in stages)
    learning = [{id(w) for b in stage.branches.values() for w in b.parameters()} for stage in stages]
    assert learning[0] < learning[1] < learning[2]


def test_joint_training_is_one_stage_with_the_earlier_heads_as_auxiliary_ones() -> None:
    model, batch = make("hcam", training="joint"), make_batch([3])
    (stage,) = model.stages()
    assert set(stage.branches) == {"fused"}
    assert set(stage.module(batch).earlier) == {"utterance", "conversation"}


def test_a_skipped_stage_is_not_trained() -> None:
    for stages in (["utterance", "fusion"], ["conversation", "fusion"], ["fusion"]):
        assert [stage.name for stage in make("hcam", stages=stages).stages()] == stages


def test_without_fusion_the_two_heads_speak_with_one_voice() -> None:
    batch = make_batch([3, 1], [1, 0, 2, 0], [1, 2, 0, 0])
    output = make("hcam", stages=("utterance", "conversation"))(batch)
    audio, text = output.audio_logits.log_softmax(-1), output.text_logits.log_softmax(-1)
    expected = torch.stack([(audio[0] + text[0]) / 2, text[1], audio[2], torch.zeros(CLASSES)])
    torch.testing.assert_close(output.logits, expected)


def test_a_frozen_encoding_gives_what_the_whole_model_gives() -> None:
    model, batch = make("hcam"), make_batch([3, 2], [2, 0, 1, 3, 0], [1, 2, 0, 3, 0])
    whole = model(batch)
    first, second, third = model.stages()
    assert second.encode is not None
    assert third.encode is not None
    found = {"utterance": first.module(batch), "conversation": second.module(second.encode(batch))}
    for name, output in found.items():
        torch.testing.assert_close(tensors_of(output), tensors_of(whole.earlier[name]))
    torch.testing.assert_close(third.module(third.encode(batch)).logits, whole.logits)


def test_an_ensemble_starts_as_the_fused_head_alone() -> None:
    plain, ensemble, batch = make("hcam"), make("hcam", ensemble=True), make_batch([3, 2])
    ensemble.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(ensemble(batch).logits.softmax(-1), plain(batch).logits.softmax(-1))
    assert "single.fused" in ensemble(batch).heads()
    assert "single.fused" not in plain(batch).heads()


def test_an_ensemble_of_one_head_gives_its_posterior_and_the_fused_one_where_it_sees_nothing() -> None:
    model, batch = make("hcam", ensemble=True), make_batch([3], [2, 0, 1], [1, 1, 1])
    model.ensemble.weights.zero_()[model.ensemble.heads.index("conversation.audio")] = 1.0
    output = model(batch)
    audio, single = output.heads()["conversation.audio"].softmax(-1), output.heads()["single.fused"].softmax(-1)
    torch.testing.assert_close(output.logits.softmax(-1), torch.stack([audio[0], single[1], audio[2]]))


def test_the_weights_of_an_ensemble_are_those_of_the_greatest_likelihood() -> None:
    ensemble = make("hcam", ensemble=True).ensemble
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (200,), generator=generator)
    posteriors = torch.randn(200, len(ensemble.heads), CLASSES, generator=generator)
    posteriors[:, 0] += 2 * torch.eye(CLASSES)[labels]  # one head knows
    posteriors[:, 1] += torch.eye(CLASSES)[labels]
    posteriors, present = posteriors.softmax(-1), torch.ones(200, len(ensemble.heads), dtype=torch.bool)
    ensemble.fit(posteriors, present, labels)

    def likelihood(weights: torch.Tensor) -> float:
        return (weights[None, :, None] * posteriors).sum(1)[torch.arange(200), labels].log().mean().item()

    best = likelihood(ensemble.weights)
    assert ensemble.weights.sum().item() == pytest.approx(1)
    assert ensemble.heads[int(ensemble.weights.argmax())] == "utterance.audio"
    for _ in range(200):
        other = torch.rand(len(ensemble.heads), generator=generator)
        assert likelihood(other / other.sum()) <= best + 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ()}, "at least 1 item"),
        ({"stages": ("fusion", "utterance")}, "each once, in this order"),
        ({"training": "jointly"}, "'hierarchical' or 'joint'"),
        ({"co_attention": "video"}, "'both', 'audio', 'text' or 'none'"),
        ({"turns": ["all", "all"]}, "may be given once only"),
        ({"turns": []}, "at least 1 item"),
        ({"turns": "listeners"}, "'all', 'own_speaker', 'other_speakers' or 'neighbours'"),
        ({"pooling": "max"}, "'attention', 'mean' or 'last'"),
        ({"attention_dim": 10, "heads": 4}, "heads is 4: must divide attention_dim, which is 10"),
    ],
)
def test_settings_that_make_no_model_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HCAMParams(**arguments)
