"""What goes into a model and what comes out of it: whole conversations in, one row of numbers an utterance out.

Utterances lie flat, conversation by conversation and turn by turn, so that encoding frames and tokens wastes nothing on
turns that don't exist. Where turns must see each other, `to_grid` lays them out by conversation and `to_flat` brings
them back. Masks are boolean, true = real.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole conversations.

    An utterance may lack a modality (its mask is false throughout), and a modality that the whole batch lacks may be 0
    wide. What stands at padded frames and tokens does not matter, as long as it is finite. In `turn_mask` every
    conversation fills its row from the left.

    Shape:
        audio: (utterances, frames, dim), or (utterances, frames, layers, dim) for a learned mix of layers, float32
        audio_mask: (utterances, frames)
        text: (utterances, tokens, dim), or (utterances, tokens, layers, dim), float32
        text_mask: (utterances, tokens)
        labels: (utterances,) int64, -1 = unlabelled
        scores: (utterances,) float32, nan = none
        turn_mask: (conversations, turns), with as many true as there are utterances
    """

    audio: Tensor
    audio_mask: Tensor
    text: Tensor
    text_mask: Tensor
    labels: Tensor
    scores: Tensor
    turn_mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True, eq=False)
class Output:
    """What every model returns; None or empty where a model, or a setting of it, lacks the part.

    Shape:
        logits: (utterances, classes), of the fused model; (utterances, 1), the score itself, where it tells scores
        audio_logits, text_logits: the same of the heads that see one modality's stream
        audio, text: (utterances, dim), embeddings of length 1 for the contrast between the modalities
        embeddings: by head (`fused`, `audio`, `text`), (utterances, dim) of length 1, for the supervised contrast
        earlier: by name, what the stages before the last one return
        views: by name, what the model shows of itself; empty unless asked for, shapes in the model's docstring
    """

    logits: Tensor
    audio_logits: Tensor | None = None
    text_logits: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    earlier: Mapping[str, "Output"] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)

    def heads(self) -> dict[str, Tensor]:
        """The logits of every head by name: `fused`, `audio`, `text`, and `<stage>.<head>` of earlier stages."""
        own = {"fused": self.logits, "audio": self.audio_logits, "text": self.text_logits}
        named = {f"{stage}.{head}": x for stage, output in self.earlier.items() for head, x in output.heads().items()}
        return {head: logits for head, logits in own.items() if logits is not None} | named


def to_grid(flat: Tensor, turn_mask: Tensor) -> Tensor:
    """Utterances laid out by conversation; zeros where no turn exists.

    Shape:
        flat: (utterances, ...)
        turn_mask: (conversations, turns)
        returns: (conversations, turns, ...)

    >>> to_grid(torch.tensor([1, 2, 3]), torch.tensor([[True, False], [True, True]])).tolist()
    [[1, 0], [2, 3]]
    """
    grid = flat.new_zeros(*turn_mask.shape, *flat.shape[1:])
    grid[turn_mask] = flat
    return grid


def to_flat(grid: Tensor, turn_mask: Tensor) -> Tensor:
    """The inverse of `to_grid`: the turns that exist, in order.

    Shape:
        grid: (conversations, turns, ...)
        turn_mask: (conversations, turns)
        returns: (utterances, ...)
    """
    return grid[turn_mask]
