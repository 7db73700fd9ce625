"""The training loss: that of each head that learns, auxiliary heads, and contrastive terms.

    L = sum over the branches of L_head + auxiliary * sum over the other heads of L_head
        + absolute * L_absolute + relative * L_relative + the losses that the model adds itself (`Output.losses`)
    L_head = (1 - supervised) * L_plain + supervised * L_supervised

Where a model gives audio's and text's vectors as two views of a turn (`Output.pairs`), the contrast is one over all of
both, instead of one in each head: sum of (1 - supervised) * L_plain + supervised * L_supervised.

L_plain is cross-entropy or focal loss for labels, and the mean absolute error for scores, which have no supervised
contrast. The absolute error is our choice: it is what such scores are judged by, and no outlier outweighs the others.

A model of one stage has one branch, its fused head. Stages in which each modality learns on its own have the branches
`audio` and `text`. A head without an embedding, or a term for which the model has no embeddings, has no such part.

After HBAF (arXiv 2503.06405), whose abstract states inter-modal contrastive learning of absolute and relative
interactions, and HCAM (arXiv 2304.06910), which states the convex mix of cross-entropy and supervised contrastive loss
(Khosla et al., arXiv 2004.11362, the form with the sum outside of the logarithm); the rest is our reading.

Utterances without a label (or score) take no part in any term but the model's own, which knows no labels; those
without audio take none in the terms of audio heads, those without text none in those of text heads, and those that lack
one of the two none in the terms between modalities.
A term in which nobody takes part is zero. Everything is computed in float32, also under autocast.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.batch import Output
from pipeline.store import UNLABELLED

# from outputs (utterances, outputs), truth (utterances,) and which utterances count (utterances,) to a scalar
HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Losses:
    """The weighted sum, and the terms before weighting; scalars in float32."""

    total: Tensor
    fused: Tensor  # of the fused head, without contrast, as those of the other two
    audio: Tensor
    text: Tensor
    absolute: Tensor
    relative: Tensor
    supervised: Tensor  # of the heads that learn here, or over both modalities' vectors
    earlier: Tensor  # of the heads of earlier stages that go on learning
    own: Tensor  # sum of those that the model adds itself


FUSED = ("fused",)  # the branches of a model of one stage


@dataclass(frozen=True)
class LabelLoss:
    """What the loss of a head is where labels are learned."""

    balanced: bool = False  # whether every label weighs the same in sum
    smoothing: float = 0.0
    gamma: float = 0.0  # of focal loss; 0 is cross-entropy


@dataclass(frozen=True)
class LossTerms:
    """How the terms are weighted and computed; those of section `loss` that say so."""

    auxiliary: float  # weights of the terms
    absolute: float
    relative: float
    temperature: float  # divides the cosine similarities of all contrastive terms
    label_aware: bool = False  # whether same-label pairs are positives of the absolute term, too; of labels alone
    supervised: float = 0.0  # share of the contrast in the loss of a head with an embedding, 0 to 1; of labels alone


def head_masks(counted: Tensor, audio_present: Tensor, text_present: Tensor) -> dict[str, Tensor]:
    """Who takes part in the loss of each head, (utterances,) boolean: who has a truth, and that modality."""
    return {"fused": counted, "audio": counted & audio_present, "text": counted & text_present}


def fusion_loss(
    output: Output,
    truth: Tensor,
    masks: Mapping[str, Tensor],
    head_loss: HeadLoss,
    terms: LossTerms,
    branches: Collection[str] = FUSED,
) -> Losses:
    """The loss of one batch. A part that the output lacks counts as zero.

    Args:
        output: what the model returned.
        truth: (utterances,), labels or scores.
        masks: as of `head_masks`.
        head_loss: of each head: `cross_entropy`, `focal_loss` or `absolute_error`.
        branches: the heads that learn here; the fused head counts if it is among them, others as auxiliary ones else.
    """
    mix = partial(_head_losses, truth=truth, masks=masks, head_loss=head_loss, terms=terms)
    here, views = mix(output), _contrast_of_views(output, truth, masks, terms)
    weights = {head: 1.0 if head in branches else terms.auxiliary * (head != "fused") for head in masks}
    none = output.logits.new_zeros((), dtype=torch.float32)
    earlier = [loss.mixed for stage in output.earlier.values() for head, loss in mix(stage).items() if head != "fused"]
    for stage in output.earlier.values():
        earlier += [terms.supervised * one for one in _contrast_of_views(stage, truth, masks, terms)]
    weighted = [(weights[head], loss.mixed) for head, loss in here.items()] + [(terms.supervised, one) for one in views]
    contrast = alignment = none
    if output.audio is not None and output.text is not None:
        paired, labels = masks["audio"] & masks["text"], truth if terms.label_aware else None
        contrast = absolute_loss(output.audio, output.text, terms.temperature, labels, paired)
        alignment = relative_loss(output.audio, output.text, terms.temperature, paired)
        weighted += [(terms.absolute, contrast), (terms.relative, alignment)]
    if earlier:
        weighted.append((terms.auxiliary, _sum(earlier, none)))
    own = [one.float() for one in output.losses.values()]
    weighted += [(1.0, one) for one in own]
    return Losses(
        total=_sum([term if weight == 1 else weight * term for weight, term in weighted], none),
        fused=here["fused"].plain,
        audio=here["audio"].plain if "audio" in here else none,
        text=here["text"].plain if "text" in here else none,
        absolute=contrast,
        relative=alignment,
        supervised=_sum(
            [loss.contrast for head, loss in here.items() if weights[head] and loss.contrast is not None] + views, none
        ),
        earlier=_sum(earlier, none),
        own=_sum(own, none),
    )


def _sum(terms: Sequence[Tensor], none: Tensor) -> Tensor:
    """Of scalars, one after the other; `none` where there are none."""
    return reduce(torch.add, terms) if terms else none


@dataclass(frozen=True, eq=False)
class _HeadLoss:
    plain: Tensor  # without contrast
    contrast: Tensor | None
    mixed: Tensor


def _head_losses(
    output: Output, truth: Tensor, masks: Mapping[str, Tensor], head_loss: HeadLoss, terms: LossTerms
) -> dict[str, _HeadLoss]:
    """The loss of each head of `output`, without those of earlier stages."""
    losses = {}
    for head, mask in masks.items():
        logits = {"fused": output.logits, "audio": output.audio_logits, "text": output.text_logits}[head]
        if logits is None:
            continue
        plain = head_loss(logits, truth, mask)
        contrast, mixed = None, plain if output.pairs is None else (1 - terms.supervised) * plain
        if terms.supervised and head in output.embeddings:
            share, contrast = terms.supervised, supervised_loss(output.embeddings[head], truth, terms.temperature, mask)
            mixed = (1 - share) * plain + share * contrast
        losses[head] = _HeadLoss(plain, contrast, mixed)
    return losses


def _contrast_of_views(output: Output, truth: Tensor, masks: Mapping[str, Tensor], terms: LossTerms) -> list[Tensor]:
    """Over audio's and text's vectors of all turns, (2 utterances, 2 utterances); nothing where there are none."""
    if output.pairs is None or not terms.supervised:
        return []
    views, mask = torch.cat(output.pairs.unbind(1)), torch.cat([masks["audio"], masks["text"]])
    return [supervised_loss(views, truth.repeat(2), terms.temperature, mask)]


def label_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) with which every label of `labels` (utterances,) weighs the same in sum, 1 on average.

    A class without an utterance gets 1; -1 marks unlabelled utterances.
    """
    counts = torch.bincount(labels[labels != UNLABELLED], minlength=classes)
    weights = counts.sum() / (counts.clamp(min=1) * (counts > 0).sum())
    return weights.where(counts > 0, 1.0)


def cross_entropy(
    logits: Tensor, labels: Tensor, mask: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over the utterances of the mask, weighted by the class of each; zero when there are none.

    Shape:
        logits: (utterances, classes)
        labels: (utterances,) int64
        mask: (utterances,)
        class_weights: (classes,)
        returns: scalar
    """
    labels = labels.where(mask, UNLABELLED)
    weights = None if class_weights is None else class_weights.float()
    total = F.cross_entropy(
        logits.float(), labels, weights, ignore_index=UNLABELLED, reduction="sum", label_smoothing=label_smoothing
    )
    if weights is None:
        return total / mask.sum().clamp_min(1)
    share = weights[labels.clamp_min(0)] * mask
    return total / share.sum().clamp_min(torch.finfo(torch.float32).tiny)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    gamma: float,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`cross_entropy` in which -log p of a label counts (1 - p) ^ gamma times: what is known already hardly counts.

    Lin et al. (arXiv 1708.02002), equation 4; smoothed and weighted as cross-entropy is, and the same at gamma 0.
    """
    log_p = logits.float().log_softmax(dim=-1)
    unlikely = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps)  # the slope stays finite where p is 1
    weights = log_p.new_ones(log_p.shape[1]) if class_weights is None else class_weights.float()
    truth = F.one_hot(labels.clamp_min(0), log_p.shape[1])
    wanted = (1 - label_smoothing) * truth + label_smoothing / log_p.shape[1]
    losses = -(wanted * weights * unlikely**gamma * log_p).sum(dim=1)
    share = (truth * weights).sum(dim=1) * mask
    return (losses * mask).sum() / share.sum().clamp_min(torch.finfo(torch.float32).tiny)


def absolute_error(outputs: Tensor, scores: Tensor, mask: Tensor, unit: float = 1.0) -> Tensor:
    """Mean distance of output and score, in `unit`s, over the utterances of the mask; zero when there are none.

    Shape:
        outputs: (utterances, 1)
        scores: (utterances,) float32, anything where the mask is false
        mask: (utterances,)
        returns: scalar
    """
    errors = (outputs.float().squeeze(1) - scores.where(mask, 0.0)).abs() * mask
    return errors.sum() / mask.sum().clamp_min(1) / unit


def absolute_loss(
    audio: Tensor, text: Tensor, temperature: float, labels: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Audio and text of one utterance belong together: symmetric InfoNCE over all pairs of the batch.

    With `labels`, the pairs of one class belong together, too: the mean log-likelihood over an utterance's positives.

    Shape:
        audio, text: (utterances, dim), of length 1
        labels: (utterances,)
        mask: (utterances,) boolean, who takes part; None: everyone
        returns: scalar, zero where fewer than two do
    """
    scores, pairs = _similarities(audio, text, temperature), _pairs(mask, audio)
    alike = _itself(scores) if labels is None else labels[:, None] == labels
    together = _Positives(pairs, pairs & alike)  # the same in rows and in columns
    return (together.likelihood(scores) + together.likelihood(scores.T)) / -2


def relative_loss(audio: Tensor, text: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Utterances that are alike in audio are alike in text: symmetric KL between the two softmaxes of each utterance.

    The softmax of an utterance runs over its similarities with all others of the same modality, without itself.

    Shape:
        audio, text: (utterances, dim), of length 1
        mask: (utterances,) boolean, who takes part; None: everyone
        returns: scalar, zero where fewer than three do
    """
    pairs = _pairs(mask, audio)
    others = pairs & ~_itself(pairs)
    left_out = ~others
    p = _log_softmax(_similarities(audio, audio, temperature), left_out)
    q = _log_softmax(_similarities(text, text, temperature), left_out)
    # KL(p | q) + KL(q | p) = sum (p - q) (log p - log q)
    divergences = ((p.exp() - q.exp()) * (p - q)).masked_fill(left_out, 0.0).sum()
    return divergences / pairs.diagonal().sum().clamp_min(1) / 2


def supervised_loss(embeddings: Tensor, labels: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Utterances of one label belong together: the mean log-likelihood of an utterance's positives among all others.

    Utterances whose label nobody else has take part as others only. Khosla et al. (arXiv 2004.11362), equation 2.

    Shape:
        embeddings: (utterances, dim), of length 1
        labels: (utterances,)
        mask: (utterances,) boolean, who takes part; None: everyone
        returns: scalar, zero where no two of them have one label
    """
    pairs = _pairs(mask, embeddings)
    others = pairs & ~_itself(pairs)
    positive = others & (labels[:, None] == labels)
    return -_Positives(others, positive).likelihood(_similarities(embeddings, embeddings, temperature))


def _similarities(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(utterances, dim) twice -> (utterances, utterances), in float32 whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ y.float().T / temperature


def _pairs(mask: Tensor | None, x: Tensor) -> Tensor:
    """(utterances, utterances) boolean, where both take part."""
    mask = torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask
    return mask[:, None] & mask


def _itself(square: Tensor) -> Tensor:
    """The diagonal of a square matrix, boolean."""
    return torch.eye(len(square), dtype=torch.bool, device=square.device)


def _log_softmax(scores: Tensor, left_out: Tensor) -> Tensor:
    """Over the columns of each row that are not left out; lowest there."""
    return scores.masked_fill(left_out, torch.finfo(scores.dtype).min).log_softmax(dim=1)


@dataclass(frozen=True, eq=False)
class _Positives:
    """Which columns belong to each row of a square matrix, among which."""

    among: Tensor
    positive: Tensor

    def likelihood(self, scores: Tensor) -> Tensor:
        """Mean over the rows with positives of the mean log-likelihood of these; zero without such a row."""
        found = _log_softmax(scores, self._left_out).masked_fill(self._negative, 0.0).sum(dim=1) / self._counts
        return found.sum() / self._rows

    @cached_property
    def _left_out(self) -> Tensor:
        return ~self.among

    @cached_property
    def _negative(self) -> Tensor:
        return ~self.positive

    @cached_property
    def _counts(self) -> Tensor:
        """(utterances,), at least 1."""
        return self.positive.sum(dim=1).clamp_min(1)

    @cached_property
    def _rows(self) -> Tensor:
        """How many have positives, at least 1."""
        return self.positive.any(dim=1).sum().clamp_min(1)
