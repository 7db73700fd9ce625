"""The posteriors of several heads to one, by weights that are fitted after training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Output

ROUNDS = 200  # of expectation maximisation, which has long stopped moving by then
TINY = 1e-12


class PosteriorEnsemble(nn.Module):
    """Replaces the fused logits by log sum over heads of weight * softmax(logits of the head).

    The weights sum to 1 over the heads that see the utterance: that of a modality that it lacks has no say.
    Until `fit` has been called, the fused head alone has weight.

    Args:
        heads: names, as `Output.heads` gives them, `fused` among them.
    """

    weights: Tensor

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.heads = list(heads)
        self.register_buffer("weights", torch.tensor([float(head == "fused") for head in heads]))

    def forward(self, output: Output, batch: Batch) -> Output:
        if self.training:
            return output
        posteriors, present = self.members(output, batch)
        fused = torch.tensor([head == "fused" for head in self.heads], device=present.device)
        weights = (self.weights + TINY * fused) * present  # the fused head speaks where no weighted one sees anything
        weights = weights / weights.sum(dim=1, keepdim=True)
        mixed = (weights[:, :, None] * posteriors).sum(dim=1)
        single = Output(logits=output.logits)
        return replace(output, logits=mixed.clamp_min(TINY).log(), earlier={**output.earlier, "single": single})

    def members(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """Posteriors (utterances, heads, classes), and which heads see the utterance (utterances, heads)."""
        logits = output.heads()
        sees = {"audio": batch.audio_mask.any(1), "text": batch.text_mask.any(1)}
        everyone = torch.ones_like(sees["audio"])
        present = [sees.get(head.split(".")[-1], everyone) for head in self.heads]
        return torch.stack([logits[head].softmax(-1) for head in self.heads], dim=1), torch.stack(present, dim=1)

    def fit(self, posteriors: Tensor, present: Tensor, labels: Tensor) -> None:
        """Choose the weights of the greatest likelihood on validation, by expectation maximisation.

        The likelihood of a mixture is concave in its weights, so there is one maximum.

        Shape:
            posteriors: (utterances, heads, classes)
            present: (utterances, heads)
            labels: (utterances,), all of them labelled
        """
        likelihood = posteriors[torch.arange(len(labels)), :, labels].double() * present
        weights = torch.full((len(self.heads),), 1 / len(self.heads), dtype=torch.float64, device=likelihood.device)
        for _ in range(ROUNDS):
            shares = weights * likelihood
            weights = (shares / shares.sum(dim=1, keepdim=True).clamp_min(TINY)).mean(dim=0)
            weights = weights / weights.sum()
        self.weights.copy_(weights)

    def by_head(self) -> Mapping[str, float]:
        """The weights by name."""
        return dict(zip(self.heads, self.weights.tolist(), strict=True))
