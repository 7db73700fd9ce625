"""TFN, tensor fusion network (Zadeh et al., arXiv 1707.07250): every product of a feature of audio and one of text.

Stated                                                          Here
-----------------------------------------------------------     ----------------------------------------------------
modality embedding subnetworks: one vector h of each modality   `UtteranceVectors`, then `relu_layers`
tensor fusion z = [h_a; 1] x [h_t; 1], the outer product, in    `outer_product`
    which the ones keep each modality by itself
inference subnetwork: two ReLU layers, then the decision        `infer`

The paper has video as a third factor, convolutions and an LSTM in the subnetworks, and utterances by themselves. Ours
are: two factors, the pooling and the conversation encoder that all baselines share, three ReLU layers in each
subnetwork as in a public implementation (Justin1904/TensorFusionNetworks), widths, and a decision without a sigmoid.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.layers import collect_views, relu_layers
from fusion.models.baselines import BaselineParams, UtteranceVectors
from fusion.models.interface import HubModel
from fusion.models.shared import Sizes


class TFNParams(BaselineParams):
    """Group `model.tfn`, and the shared keys that the model takes."""

    width: int = Field(32, ge=1, le=512)  # of each factor: the product has (width + 1)^2 numbers


def outer_product(audio: Tensor, text: Tensor) -> Tensor:
    """[1; a] x [1; t], flat.

    Shape:
        audio, text: (utterances, width)
        returns: (utterances, (width + 1) ** 2), that of audio i and text j at (width + 1) i + j; 0 stands for the ones
    """
    a, t = (F.pad(x, (1, 0), value=1.0) for x in (audio, text))
    return (a[:, :, None] * t[:, None, :]).flatten(1)


class TFN(nn.Module, HubModel, paper_url="https://arxiv.org/abs/1707.07250"):
    """Tensor fusion network. `forward` takes a `Batch` and returns an `Output`."""

    Params = TFNParams

    def __init__(self, params: TFNParams, sizes: Sizes) -> None:
        super().__init__()
        dim, width, dropout = params.dim, params.width, params.dropout
        self.vectors = UtteranceVectors(params, sizes)
        self.audio = relu_layers(dim, width, 3, dropout)
        self.text = relu_layers(dim, width, 3, dropout)
        self.infer = relu_layers((width + 1) ** 2, dim, 2, dropout)
        self.decide = nn.Linear(dim, sizes.classes)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = self.vectors(batch)  # (utterances, dim)
            z = outer_product(self.audio(a), self.text(t))  # (utterances, (width + 1) ** 2)
            return Output(logits=self.decide(self.infer(z)), views=shown)
