"""The training loss: classification by each head that learns, auxiliary heads, and contrastive terms.

    L = sum over the branches of L_head + auxiliary * sum over the other heads of L_head
        + absolute * L_absolute + relative * L_relative
    L_head = (1 - supervised) * CE + supervised * L_supervised

A model of one stage has one branch, its fused head. Stages in which each modality learns on its own have the branches
`audio` and `text`. A head without an embedding, or a term for which the model has no embeddings, has no such part.

After HBAF (arXiv 2503.06405), whose abstract states inter-modal contrastive learning of absolute and relative
interactions, and HCAM (arXiv 2304.06910), which states the convex mix of cross-entropy and supervised contrastive loss
(Khosla et al., arXiv 2004.11362, the form with the sum outside of the logarithm); the rest is our reading.

Unlabelled utterances take no part in any term, those without audio none in the terms of audio heads, those without text
none in those of text heads, and those that lack one of the two none in the terms between modalities. A term in which
nobody takes part is zero. Everything is computed in float32, also under autocast.
"""

from collections.abc import Callable, Collection, Mapping
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
    supervised: Tensor  # of the heads that learn here
    earlier: Tensor  # of the heads of earlier stages that go on learning


FUSED = ("fused",)  # the branches of a model of one stage


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
    supervised: float = 0.0,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    branches: Collection[str] = FUSED,
) -> Losses:
    """The loss of one batch. A part that the output lacks counts as zero.

    Args:
        output: what the model returned.
        labels: (utterances,) int64, -1 = unlabelled.
        audio_present, text_present: (utterances,) boolean, whether the utterance has that modality.
        auxiliary, absolute, relative: weights of the terms.
        temperature: divides the cosine similarities of all contrastive terms.
        label_aware: whether same-label pairs are positives of the absolute term, too.
        supervised: share of the supervised contrast in the loss of a head that has an embedding, 0 to 1.
        class_weights: (classes,), for all classification terms.
        label_smoothing: share of the target spread over all classes, for all classification terms.
        branches: the heads that learn here; the fused head counts if it is among them, others as auxiliary ones else.
    """
    targets = {
        "fused": labels,
        "audio": labels.where(audio_present, UNLABELLED),
        "text": labels.where(text_present, UNLABELLED),
    }
    classify = partial(cross_entropy, class_weights=class_weights, label_smoothing=label_smoothing)
    mix = partial(_head_losses, targets=targets, classify=classify, share=supervised, temperature=temperature)
    here = mix(output)
    weights = {head: 1.0 if head in branches else auxiliary * (head != "fused") for head in targets}
    none = output.logits.new_zeros((), dtype=torch.float32)
    contrast = alignment = earlier = none
    if output.audio is not None and output.text is not None:
        paired = (labels != UNLABELLED) & audio_present & text_present
        positives = labels[paired] if label_aware else None
        contrast = absolute_loss(output.audio[paired], output.text[paired], temperature, positives)
        alignment = relative_loss(output.audio[paired], output.text[paired], temperature)
    for stage in output.earlier.values():
        earlier = sum((loss.mixed for head, loss in mix(stage).items() if head != "fused"), earlier)
    learning = sum((weights[head] * loss.mixed for head, loss in here.items()), none)
    return Losses(
        total=learning + absolute * contrast + relative * alignment + auxiliary * earlier,
        classification=here["fused"].classification,
        audio=here["audio"].classification if "audio" in here else none,
        text=here["text"].classification if "text" in here else none,
        absolute=contrast,
        relative=alignment,
        supervised=sum((loss.contrast for head, loss in here.items() if weights[head]), none),
        earlier=earlier,
    )


@dataclass(frozen=True, eq=False)
class _HeadLoss:
    classification: Tensor
    contrast: Tensor
    mixed: Tensor


def _head_losses(
    output: Output,
    targets: Mapping[str, Tensor],
    classify: Callable[[Tensor, Tensor], Tensor],
    share: float,
    temperature: float,
) -> dict[str, _HeadLoss]:
    """The loss of each head of `output`, without those of earlier stages."""
    losses = {}
    for head, labels in targets.items():
        logits = {"fused": output.logits, "audio": output.audio_logits, "text": output.text_logits}[head]
        if logits is None:
            continue
        classification = classify(logits, labels)
        contrast, mixed = torch.zeros_like(classification), classification
        if share and head in output.embeddings:
            labelled = labels != UNLABELLED
            contrast = supervised_loss(output.embeddings[head][labelled], labels[labelled], temperature)
            mixed = (1 - share) * classification + share * contrast
        losses[head] = _HeadLoss(classification, contrast, mixed)
    return losses


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


def supervised_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Utterances of one label belong together: the mean log-likelihood of an utterance's positives among all others.

    Utterances whose label nobody else has take part as others only. Khosla et al. (arXiv 2004.11362), equation 2.

    Shape:
        embeddings: (utterances, dim), of length 1
        labels: (utterances,)
        returns: scalar, zero where no two utterances have one label
    """
    likelihoods = _others(_similarities(embeddings, embeddings, temperature)).log_softmax(dim=1)
    positive = _others(labels[:, None] == labels)
    count = positive.sum(dim=1)
    anchors = (likelihoods * positive).sum(dim=1) / count.clamp_min(1)
    return -anchors.sum() / (count > 0).sum().clamp_min(1)


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
