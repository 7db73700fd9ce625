"""What several heads say to one answer, by weights that are fitted after training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy  # see `fusion.objective.statistics`
import torch
from torch import Tensor, nn

from fusion.batch import Batch, Output

ROUNDS = 200  # of expectation maximisation, which has long stopped moving by then
TINY = 1e-12


class Ensemble(nn.Module):
    """Replaces the fused output by the weighted mean of what all heads say.

    Of labels it is log sum over heads of weight * softmax(logits of the head), of scores their weighted mean.

    The weights sum to 1 over the heads that see the utterance: that of a modality that it lacks has no say.
    Until `fit` has been called, the fused head alone has weight.

    Args:
        heads: names, as `Output.heads` gives them, `fused` among them.
        scores: whether heads give scores, not logits.
    """

    weights: Tensor

    def __init__(self, heads: Sequence[str], scores: bool = False) -> None:
        super().__init__()
        self.heads = list(heads)
        self.mixing: _Posteriors | _Scores = _Scores() if scores else _Posteriors()
        self.register_buffer("weights", torch.tensor([float(head == "fused") for head in heads]))

    def forward(self, output: Output, batch: Batch) -> Output:
        if self.training:
            return output
        said, present = self.members(output, batch)
        fused = torch.tensor([head == "fused" for head in self.heads], device=present.device)
        weights = (self.weights + TINY * fused) * present  # the fused head speaks where no weighted one sees anything
        weights = weights / weights.sum(dim=1, keepdim=True)
        mixed = (weights[:, :, None] * said).sum(dim=1)
        single = Output(logits=output.logits)
        return replace(output, logits=self.mixing.as_output(mixed), earlier={**output.earlier, "single": single})

    def members(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """What heads say (utterances, heads, classes or 1), and which see the utterance (utterances, heads)."""
        outputs = output.heads()
        sees = {"audio": batch.audio_present, "text": batch.text_present}
        everyone = torch.ones_like(sees["audio"])
        present = [sees.get(head.split(".")[-1], everyone) for head in self.heads]
        said = [self.mixing.of_output(outputs[head]) for head in self.heads]
        return torch.stack(said, dim=1), torch.stack(present, dim=1)

    def fit(self, said: Tensor, present: Tensor, truth: Tensor) -> None:
        """Choose the weights that are best on validation.

        Shape:
            said: (utterances, heads, classes or 1), from `members`
            present: (utterances, heads)
            truth: (utterances,), labels or scores, none missing
        """
        self.weights.copy_(self.mixing.fit(said, present, truth))


class _Posteriors:
    """Heads that give logits."""

    def of_output(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def as_output(self, posteriors: Tensor) -> Tensor:
        return posteriors.clamp_min(TINY).log()

    def fit(self, said: Tensor, present: Tensor, labels: Tensor) -> Tensor:
        """The weights (heads,) of the greatest likelihood, by expectation maximisation.

        The likelihood of a mixture is concave in its weights, so there is one maximum.
        """
        likelihood = said[torch.arange(len(labels)), :, labels].double() * present
        heads = said.shape[1]
        weights = torch.full((heads,), 1 / heads, dtype=torch.float64, device=likelihood.device)
        for _ in range(ROUNDS):
            shares = weights * likelihood
            weights = (shares / shares.sum(dim=1, keepdim=True).clamp_min(TINY)).mean(dim=0)
            weights = weights / weights.sum()
        return weights


class _Scores:
    """Heads that give scores."""

    def of_output(self, scores: Tensor) -> Tensor:
        return scores

    def as_output(self, scores: Tensor) -> Tensor:
        return scores

    def fit(self, said: Tensor, present: Tensor, scores: Tensor) -> Tensor:
        """The weights (heads,) whose mean has the smallest absolute errors, by linear programming.

        Over utterances that all heads see, but those heads that see none: minimise sum e where e >= |scores - said w|,
        w >= 0, sum w = 1. Where there is no such utterance, heads weigh the same.
        """
        seeing = present.any(dim=0)
        everywhere = present[:, seeing].all(dim=1)
        weights = seeing.double() / seeing.sum().clamp_min(1)
        if not everywhere.any():
            return weights
        heads = scipy.sparse.csr_array(said[everywhere][:, seeing, 0].double().numpy())
        true, (count, width) = scores[everywhere].double().numpy(), heads.shape
        errors = scipy.sparse.eye_array(count)
        done = scipy.optimize.linprog(
            c=np.repeat([0.0, 1.0], [width, count]),
            A_ub=scipy.sparse.vstack([scipy.sparse.hstack([heads, -errors]), scipy.sparse.hstack([-heads, -errors])]),
            b_ub=np.concatenate([true, -true]),
            A_eq=np.repeat([[1.0, 0.0]], [width, count], axis=1),
            b_eq=[1.0],
        )
        weights[seeing] = torch.from_numpy(done.x[:width])
        return weights
