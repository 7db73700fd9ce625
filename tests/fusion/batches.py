"""Small random batches and models, and what tests ask of them."""

import json
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.models import Sizes, Wanted, build_model, find_model
from fusion.objective import LossTerms, fusion_loss, head_masks
from fusion.objective.losses import FUSED, absolute_error, cross_entropy

AUDIO_DIM, TEXT_DIM, CLASSES, DIM, HEADS = 5, 6, 3, 8, 2
SIZES = {"audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM, "audio_layers": 1, "text_layers": 1, "classes": CLASSES}


def name_of(setting: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "default"


def make(name: str, **arguments: Any) -> Any:
    """The model called `name`, small, always with the same weights, in evaluation mode."""
    torch.manual_seed(0)
    small = {
        key: value for key, value in {"dim": DIM, "heads": HEADS}.items() if key in find_model(name).Params.model_fields
    }
    model = build(name, **(small | arguments)).eval()
    for name, buffer in model.named_buffers():  # as training leaves them: padding is not zero
        if "standardise" in name:
            drawn = {"mean": torch.randn, "scale": torch.rand, "low": torch.rand, "high": torch.rand}
            buffer.copy_(drawn[what := name.rpartition(".")[2]](buffer.shape) + {"low": -1.5}.get(what, 0.5))
    return model


def build(name: str, **arguments: Any) -> Any:
    """The model called `name`; keywords are fields of its params, of `Sizes` and of `Wanted`."""
    sizes, wanted = ({one.name for one in fields(record)} for record in (Sizes, Wanted))
    own = {key: value for key, value in arguments.items() if key not in sizes | wanted}
    return build_model(
        name,
        find_model(name).Params.model_validate_json(json.dumps(own)),
        Sizes(**SIZES | {key: value for key, value in arguments.items() if key in sizes}),
        Wanted(**{key: value for key, value in arguments.items() if key in wanted}),
    )


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

    audio, audio_mask = draw(frames, AUDIO_DIM, sizes.get("audio_layers", 1))
    text, text_mask = draw(tokens, TEXT_DIM, sizes.get("text_layers", 1))
    return Batch.padded(
        audio=audio,
        audio_mask=audio_mask,
        text=text,
        text_mask=text_mask,
        labels=torch.randint(CLASSES, (sum(turns),), generator=generator),
        scores=torch.randn(sum(turns), generator=generator),
        turn_mask=torch.arange(max(turns)) < torch.tensor(turns)[:, None],
        speakers=torch.cat([torch.arange(count) // 2 % 2 for count in turns]),  # 0 0 1 1 0 ..
    )


def tensors_in(batch: Batch) -> dict[str, Any]:
    """By the names of `Batch.padded`."""
    (group,) = batch.joined().groups
    rows = {f"{name}{kind}": getattr(group, f"{name}{kind}") for name in ("audio", "text") for kind in ("", "_mask")}
    return rows | {
        "labels": batch.labels,
        "scores": batch.scores,
        "turn_mask": batch.turns.mask,
        "speakers": batch.turns.speakers,
    }


def changed(batch: Batch, **tensors: Tensor) -> Batch:
    """The batch with other tensors."""
    return Batch.padded(**(tensors_in(batch) | tensors))


def regrouped(batch: Batch, members: list[list[int]]) -> Batch:
    """The batch with its utterances in these groups, each padded to its own longest."""
    (whole,) = batch.joined().groups
    groups = []
    for group in members:
        audio, text = (int(mask[group].sum(1).max()) for mask in (whole.audio_mask, whole.text_mask))
        groups.append(
            Group(
                utterances=torch.tensor(group),
                audio=whole.audio[group, :audio],
                audio_mask=whole.audio_mask[group, :audio],
                text=whole.text[group, :text],
                text_mask=whole.text_mask[group, :text],
            )
        )
    return replace(batch, groups=groups, order=torch.tensor([one for group in members for one in group]).argsort())


def batch_for(setting: dict[str, Any], turns: list[int] | None = None) -> Batch:
    layers = {key: value for key, value in setting.items() if key.endswith("_layers") and key[:5] in ("audio", "text_")}
    return make_batch(turns or [3, 1, 4], **layers)


def total_loss(output: Output, batch: Batch, branches: Any = FUSED) -> Tensor:
    """Of labels, or of scores where the output has room for nothing else."""
    scores = output.logits.shape[1] == 1
    masks = head_masks(torch.ones_like(batch.labels, dtype=torch.bool), batch.audio_present, batch.text_present)
    terms = LossTerms(auxiliary=0.3, absolute=0.1, relative=0.1, supervised=0.2, temperature=0.1)
    truth, loss = (batch.scores, absolute_error) if scores else (batch.labels, cross_entropy)
    return fusion_loss(output, truth, masks, loss, terms, branches).total


def tensors_of(output: Output) -> dict[str, Tensor]:
    """All that an output says of each utterance, (utterances, ...) each."""
    own = {name: value for name in ("audio", "text") if (value := getattr(output, name)) is not None}
    embeddings = {f"embedding of {head}": value for head, value in output.embeddings.items()}
    embeddings |= {} if output.pairs is None else {"pairs": output.pairs}
    return {f"logits of {head}": value for head, value in output.heads().items()} | own | embeddings


def assert_same(found: Output, expected: Output) -> None:
    """Within eight steps of float32 at 1: sums of another shape round otherwise, by two steps so far, AVX2 to AMX."""
    torch.testing.assert_close(tensors_of(found), tensors_of(expected), rtol=0, atol=1e-6)


def only(batch: Batch, utterances: Any, turn_mask: Tensor) -> Batch:
    """The batch of some utterances."""
    rows = {name: tensor[utterances] for name, tensor in tensors_in(batch).items() if name != "turn_mask"}
    return Batch.padded(**rows, turn_mask=turn_mask)


def influence(model: nn.Module, batch: Batch, target: int) -> list[bool]:
    """Which utterances the answers for the utterance `target` depend on."""
    audio, text = (tensors_in(batch)[name].clone().requires_grad_() for name in ("audio", "text"))
    output = model(changed(batch, audio=audio, text=text))
    torch.stack([value[target].square().sum() for value in tensors_of(output).values()]).sum().backward()
    reached = [x.grad.flatten(1).any(dim=1) for x in (audio, text) if x.grad is not None]
    return torch.stack(reached).any(dim=0).tolist()
