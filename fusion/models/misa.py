"""MISA (Hazarika et al., arXiv 2005.03545): what modalities share and what each has alone, in spaces of their own.

Stated, with u one vector a modality and utterance, m a modality (code: declare-lab/MISA):

    u_m = LN(relu(W_m u))                           one width for all (code)
    s_m = sigmoid(W u_m)                            modality-invariant: one encoder for all modalities
    p_m = sigmoid(W_m u_m)                          modality-specific: an encoder each
    [p_t; p_a; s_t; s_a] = Transformer(p_t, p_a, s_t, s_a), one layer, then MLP -> logits

    L = L_task + similarity * L_sim + difference * L_diff + reconstruction * L_recon
    L_sim    central moment discrepancy of s_a and s_t, up to the fifth moment: `moment_discrepancy`
    L_diff   of p_m and s_m of each m, and of p_a and p_t: `overlap`, zero where they are orthogonal
    L_recon  mean squared error of W_m' (p_m + s_m) and u_m, mean over modalities

Ours are: two modalities, hence one pair in L_sim, the pooling and the conversation encoder that all baselines share in
place of stacked LSTMs and BERT, heads and feed-forward network of the transformer, and that an utterance without a
modality takes no part in that modality's losses. An utterance without a label does: these losses need none. A weight of
0 leaves a loss out, and with `reconstruction: 0` the decoders.
"""

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.layers import Constant, TransformerLayer, collect_views
from fusion.models.baselines import BaselineParams, UtteranceVectors
from fusion.models.interface import HubModel
from fusion.models.shared import Heads, Sizes, Weight

MOMENTS = 5
TINY = 1e-6  # added to lengths, as in the authors' code


class MISAParams(BaselineParams):
    """Group `model.misa`, and the shared keys that the model takes."""

    heads: Heads = 4
    similarity: Weight = 1.0  # weights of the losses; these are those of the authors' code
    difference: Weight = 0.3
    reconstruction: Weight = 1.0


def moment_discrepancy(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """|mean(x) - mean(y)| + sum over k = 2 .. 5 of |E (x - mean)^k - E (y - mean)^k|, of values between 0 and 1.

    Shape:
        x, y: (utterances, dim)
        mask: (utterances,) boolean, who takes part
        returns: scalar, zero where nobody does
    """
    centred, means = zip(*(_centre(one, mask) for one in (x, y)), strict=True)
    total = torch.linalg.vector_norm(means[0] - means[1])
    for power in range(2, MOMENTS + 1):
        moments = [_mean(one**power, mask) for one in centred]
        total = total + torch.linalg.vector_norm(moments[0] - moments[1])
    return total


def overlap(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Mean square of the entries of X^T Y, whose rows are centred over the batch and of length 1.

    Shape:
        x, y: (utterances, dim)
        mask: (utterances,) boolean, who takes part
        returns: scalar, zero where nobody does
    """
    unit = []
    for one in (x, y):
        rows = _centre(one, mask)[0] * mask[:, None]
        unit.append(rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True).detach() + TINY))
    return (unit[0].T @ unit[1]).square().mean()


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """(dim,), of the rows of the mask."""
    return (x * mask[:, None]).sum(dim=0) / mask.sum().clamp_min(1)


def _centre(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    mean = _mean(x, mask)
    return x - mean, mean


class Subspaces(nn.Module):
    """One modality: u_m, and p_m; `recover` makes u_m of p_m + s_m.

    Shape:
        x: (utterances, dim)
        returns: u_m and p_m, (utterances, dim)
    """

    def __init__(self, dim: int, recovers: bool) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))
        self.private = nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid())
        self.recover = nn.Linear(dim, dim) if recovers else Constant(0.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.project(x)
        return u, self.private(u)


class MISA(nn.Module, HubModel, paper_url="https://arxiv.org/abs/2005.03545"):
    """Modality-invariant and -specific representations. `forward` takes a `Batch` and returns an `Output`.

    Its losses are in `Output.losses`: `similarity`, `difference`, `reconstruction`. With `views=True` the output also
    shows `relate.attention` (utterances, heads, 4, 4), among p_t, p_a, s_t, s_a.
    """

    Params = MISAParams

    def __init__(self, params: MISAParams, sizes: Sizes) -> None:
        super().__init__()
        dim, dropout = params.dim, params.dropout
        self.weights = {name: getattr(params, name) for name in ("similarity", "difference", "reconstruction")}
        self.vectors = UtteranceVectors(params, sizes)
        self.audio = Subspaces(dim, params.reconstruction > 0)
        self.text = Subspaces(dim, params.reconstruction > 0)
        self.shared = nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid())
        self.relate = TransformerLayer(dim, params.heads, dropout)
        self.classifier = nn.Sequential(
            nn.Linear(4 * dim, 2 * dim), nn.Dropout(dropout), nn.ReLU(), nn.Linear(2 * dim, sizes.classes)
        )

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = self.vectors(batch)
            (audio, private_audio), (text, private_text) = self.audio(a), self.text(t)  # u_m, p_m
            shared_audio, shared_text = self.shared(audio), self.shared(text)  # s_m
            h = torch.stack([private_text, private_audio, shared_text, shared_audio], dim=1)  # (utterances, 4, dim)
            h = self.relate(h, h, h.new_ones(h.shape[:2], dtype=torch.bool))
            has_audio, has_text = batch.audio_present, batch.text_present
            both = has_audio & has_text
            parts = {
                "similarity": moment_discrepancy(shared_audio, shared_text, both),
                "difference": overlap(private_text, shared_text, has_text)
                + overlap(private_audio, shared_audio, has_audio)
                + overlap(private_audio, private_text, both),
                "reconstruction": _error(self.text.recover(private_text + shared_text), text, has_text) / 2
                + _error(self.audio.recover(private_audio + shared_audio), audio, has_audio) / 2,
            }
            losses = {name: weight * parts[name] for name, weight in self.weights.items() if weight}
            return Output(logits=self.classifier(h.flatten(1)), losses=losses, views=shown)


def _error(found: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Mean square over the rows of the mask; zero where there is none."""
    return _mean((found - expected).square(), mask).mean()
