"""The training loss: classification, auxiliary classification by each modality, and two contrastive terms.

    L = CE + auxiliary * (CE_audio + CE_text) + absolute * L_absolute + relative * L_relative

After HBAF (arXiv 2503.06405), whose abstract states inter-modal contrastive learning of absolute and relative
interactions; the formulas are our reading. Unlabelled utterances take no part in any term, those without audio none in
the audio term, those without text none in the text term, and those that lack one of the two none in the contrastive
terms. A term in which nobody takes part is zero. Everything is computed in float32, also under autocast.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.batch import Output
from pipeline.store import UNLABELLED


@dataclass(frozen=True, eq=False)
class Losses:
    """The weighted sum, and the terms before weighting; scalars in float32."""

    total: Tensor
    classification: Tensor
    audio: Tensor
    text: Tensor
    absolute: Tensor
    relative: Tensor


def fusion_loss(
    output: Output,
    labels: Tensor,
    audio_present: Tensor,
    text_present: Tensor,
    *,
    auxiliary: float,
    absolute: float,
    relative: float,
    temperature: float,
    label_aware: bool,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Losses:
    """The loss of one batch. A part that the output lacks counts as zero.

    Args:
        output: what the model returned.
        labels: (utterances,) int64, -1 = unlabelled.
        audio_present, text_present: (utterances,) boolean, whether the utterance has that modality.
        auxiliary, absolute, relative: weights of the terms.
        temperature: divides the cosine similarities of both contrastive terms.
        label_aware: whether same-label pairs are positives of the absolute term, too.
        class_weights: (classes,), for the three classification terms.
        label_smoothing: share of the target spread over all classes, for the three classification terms.
    """
    classify = partial(cross_entropy, class_weights=class_weights, label_smoothing=label_smoothing)
    classification = classify(output.logits, labels)
    audio = text = contrast = alignment = classification.new_zeros(())
    if output.audio_logits is not None:
        audio = classify(output.audio_logits, labels.where(audio_present, UNLABELLED))
    if output.text_logits is not None:
        text = classify(output.text_logits, labels.where(text_present, UNLABELLED))
    if output.audio is not None and output.text is not None:
        paired = (labels != UNLABELLED) & audio_present & text_present
        positives = labels[paired] if label_aware else None
        contrast = absolute_loss(output.audio[paired], output.text[paired], temperature, positives)
        alignment = relative_loss(output.audio[paired], output.text[paired], temperature)
    total = classification + auxiliary * (audio + text) + absolute * contrast + relative * alignment
    return Losses(total, classification, audio, text, contrast, alignment)


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over the labelled utterances, weighted by the class of each; zero when there are none.

    Shape:
        logits: (utterances, classes)
        labels: (utterances,) int64, -1 = unlabelled
        class_weights: (classes,)
        returns: scalar
    """
    weights = logits.new_ones(logits.shape[1], dtype=torch.float32) if class_weights is None else class_weights.float()
    total = F.cross_entropy(
        logits.float(), labels, weights, ignore_index=UNLABELLED, reduction="sum", label_smoothing=label_smoothing
    )
    share = weights[labels.clamp_min(0)] * (labels != UNLABELLED)
    return total / share.sum().clamp_min(torch.finfo(torch.float32).tiny)


def absolute_loss(audio: Tensor, text: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Audio and text of one utterance belong together: symmetric InfoNCE over all pairs of the batch.

    With `labels`, the pairs of one class belong together, too: the mean log-likelihood over an utterance's positives.

    Shape:
        audio, text: (utterances, dim), of length 1
        labels: (utterances,)
        returns: scalar, zero for fewer than two utterances
    """
    scores = _similarities(audio, text, temperature)
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    positive = own if labels is None else labels[:, None] == labels
    return (_info_nce(scores, positive) + _info_nce(scores.T, positive)) / 2


def relative_loss(audio: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Utterances that are alike in audio are alike in text: symmetric KL between the two softmaxes of each utterance.

    The softmax of an utterance runs over its similarities with all others of the same modality, without itself.

    Shape:
        audio, text: (utterances, dim), of length 1
        returns: scalar, zero for fewer than three utterances
    """
    p = _others(_similarities(audio, audio, temperature)).log_softmax(dim=1)
    q = _others(_similarities(text, text, temperature)).log_softmax(dim=1)
    # KL(p | q) + KL(q | p) = sum (p - q) (log p - log q)
    divergences = ((p.exp() - q.exp()) * (p - q)).sum(dim=1)
    return _mean(divergences) / 2


def _similarities(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(utterances, dim) twice -> (utterances, utterances), in float32 whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ y.float().T / temperature


def _others(square: Tensor) -> Tensor:
    """A square matrix without its diagonal: (n, n) -> (n, n - 1)."""
    size = len(square)
    return square[~torch.eye(size, dtype=torch.bool, device=square.device)].view(size, max(size - 1, 0))


def _info_nce(scores: Tensor, positive: Tensor) -> Tensor:
    likelihood = (scores.log_softmax(dim=1) * positive).sum(dim=1) / positive.sum(dim=1)
    return -_mean(likelihood)


def _mean(x: Tensor) -> Tensor:
    """The mean of a vector, zero for an empty one."""
    return x.sum() / max(len(x), 1)
