"""Three experts and a gate, after MiSTER-E (Dutta et al., arXiv 2602.23300): audio, text, and both at once.

Stated by the abstract: predictions of a speech-only, a text-only and a cross-modal expert are joined by a learned gate
that weighs their outputs for each utterance; a divergence between the experts' predictions is part of the loss. Here:

    p_e = softmax(MLP_e(.)) of audio, of text and of [a; t]         MLP_e has an utterance's vectors
    w   = softmax(W [a; t] + b) over the experts                    the gate
    p   = sum over e of w_e p_e,   logits = log p
    L   = L_told(p) + auxiliary * (L_told of audio and of text) + consistency * mean over e of KL(p_e | p)

Where scores are learned, experts give scores, which are averaged by the same weights, and their squared distance from
that average stands for the divergence. Ours are: the form of gate, experts and divergence, concatenation in the
cross-modal expert, the pooling and the conversation encoder that all baselines share, and that the expert of a modality
which an utterance lacks has no weight there. The contrast of that paper is HCAM's, and left out here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.layers import classifier, collect_views
from fusion.models.baselines import BaselineParams, UtteranceVectors
from fusion.models.interface import HubModel
from fusion.models.shared import EVERYTHING, Sizes, Wanted, Weight


class ExpertsParams(BaselineParams):
    """Group `model.experts`, and the shared keys that the model takes."""

    consistency: Weight = 0.1  # weight of the divergence between each expert and all of them


class ExpertGate(nn.Module):
    """How much each expert counts.

    Shape:
        x: (utterances, features)
        present: (utterances, experts) boolean, which of them see the utterance
        returns: log of the weights (utterances, experts), which sum to 1; lowest at experts that see nothing
    """

    def __init__(self, features: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, experts)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        scores = self.linear(x).float()
        return scores.masked_fill(~present, torch.finfo(scores.dtype).min).log_softmax(dim=1)

    def views(self, x: Tensor, present: Tensor) -> dict[str, Tensor]:
        return {"weights": self.forward(x, present).exp()}


class MixLabels(nn.Module):
    """Posteriors of the experts to those of all of them.

    Shape:
        said: (utterances, experts, classes), logits
        gate: (utterances, experts), log of the weights
        returns: logits (utterances, classes), and the divergence of each expert (utterances, experts)
    """

    def forward(self, said: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        each = said.float().log_softmax(dim=-1)
        mixed = (each + gate[:, :, None]).logsumexp(dim=1)
        return mixed, F.kl_div(mixed[:, None].expand_as(each), each, reduction="none", log_target=True).sum(dim=-1)


class MixScores(nn.Module):
    """The same of scores (utterances, experts, 1)."""

    def forward(self, said: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        mixed = (said * gate.exp()[:, :, None]).sum(dim=1)
        return mixed, (said - mixed[:, None]).square().squeeze(-1)


class Experts(nn.Module, HubModel, paper_url="https://arxiv.org/abs/2602.23300"):
    """A learned gate over experts for audio, text and both. `forward` takes a `Batch` and returns an `Output`.

    The heads `audio` and `text` are those experts. With `views=True` the output also shows `gate.weights` (utterances,
    3), in the order audio, text, both.
    """

    Params = ExpertsParams
    losses = ("auxiliary",)

    def __init__(self, params: ExpertsParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> None:
        super().__init__()
        dim, dropout = params.dim, params.dropout
        self.consistency = params.consistency
        self.vectors = UtteranceVectors(params, sizes)
        self.audio = classifier(dim, dim, sizes.classes, dropout)
        self.text = classifier(dim, dim, sizes.classes, dropout)
        self.both = classifier(2 * dim, dim, sizes.classes, dropout)
        self.gate = ExpertGate(2 * dim, experts=3)
        self.mix = MixScores() if wanted.scores else MixLabels()

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = self.vectors(batch)  # (utterances, dim)
            joined = torch.cat([a, t], dim=-1)
            audio, text = self.audio(a), self.text(t)  # (utterances, classes)
            everyone = torch.ones_like(batch.audio_present)
            present = torch.stack([batch.audio_present, batch.text_present, everyone], dim=1)
            gate = self.gate(joined, present)  # (utterances, experts)
            logits, divergence = self.mix(torch.stack([audio, text, self.both(joined)], dim=1), gate)
            apart = (divergence * present).sum() / present.sum().clamp_min(1)
            losses = {"consistency": self.consistency * apart} if self.consistency else {}
            return Output(logits=logits, audio_logits=audio, text_logits=text, losses=losses, views=shown)
