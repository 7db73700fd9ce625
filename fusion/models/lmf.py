"""LMF, low-rank multimodal fusion (Liu et al., arXiv 1806.00064): tensor fusion, its weights a sum of few products.

Stated: logits = W z + b over the outer product z = [1; a] x [1; t] of TFN, where W (classes, a's, t's) is the sum over
r of the outer products of two factors, so that neither W nor z is ever made:

    logits = b + sum over r of (A_r [1; a]) * (T_r [1; t])

Code (Justin1904/Low-rank-Multimodal-Fusion, the authors'): a learned weight for each r in the sum, three ReLU layers
before the factors, and dropout of what goes into these. Ours are: two factors, the pooling and the conversation encoder
that all baselines share in place of an LSTM for text, and widths.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.layers import collect_views, relu_layers
from fusion.models.baselines import BaselineParams, UtteranceVectors
from fusion.models.interface import HubModel
from fusion.models.shared import Sizes


class LMFParams(BaselineParams):
    """Group `model.lmf`, and the shared keys that the model takes."""

    width: int = Field(32, ge=1, le=4096)  # of each modality's vector
    rank: int = Field(4, ge=1, le=256)  # products in the sum


class LowRankFusion(nn.Module):
    """W ([1; a] x [1; t]) + b with W of low rank.

    Shape:
        audio, text: (utterances, width)
        returns: (utterances, classes)
    """

    def __init__(self, width: int, rank: int, classes: int) -> None:
        super().__init__()
        self.audio = nn.Parameter(nn.init.xavier_normal_(torch.empty(rank, width + 1, classes)))
        self.text = nn.Parameter(nn.init.xavier_normal_(torch.empty(rank, width + 1, classes)))
        self.weights = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, rank)))
        self.bias = nn.Parameter(torch.zeros(1, classes))

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        a, t = (F.pad(x, (1, 0), value=1.0) for x in (audio, text))
        products = (a @ self.audio) * (t @ self.text)  # (rank, utterances, classes)
        return (self.weights.view(-1, 1, 1) * products).sum(dim=0) + self.bias

    def tensor(self) -> Tensor:
        """W as a whole: (width + 1, width + 1, classes)."""
        return torch.einsum("r,rac,rtc->atc", self.weights[0], self.audio, self.text)


class LMF(nn.Module, HubModel, paper_url="https://arxiv.org/abs/1806.00064"):
    """Low-rank multimodal fusion. `forward` takes a `Batch` and returns an `Output`."""

    Params = LMFParams

    def __init__(self, params: LMFParams, sizes: Sizes) -> None:
        super().__init__()
        self.vectors = UtteranceVectors(params, sizes)
        self.audio = relu_layers(params.dim, params.width, 3, params.dropout)
        self.text = relu_layers(params.dim, params.width, 3, params.dropout)
        self.fuse = LowRankFusion(params.width, params.rank, sizes.classes)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = self.vectors(batch)  # (utterances, dim)
            return Output(logits=self.fuse(self.audio(a), self.text(t)), views=shown)
