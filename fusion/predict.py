"""What trained models say of a split, and how well."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fusion.data import Split
from fusion.device import reproducible
from fusion.layers.ensemble import PosteriorEnsemble
from fusion.metrics import all_metrics, confusion_matrix, conversation_confusions

CONVERSATIONS = 16  # at a time; predictions do not depend on it


def predict_heads(model: nn.Module, split: Split) -> dict[str, np.ndarray]:
    """Probabilities (utterances, classes) in float64, in the order of the split, by head (`Output.heads`)."""
    with reproducible(0, split.device), torch.inference_mode():
        outputs = [model.eval()(batch).heads() for batch in split.batches(CONVERSATIONS)]
    return {
        head: torch.cat([output[head] for output in outputs]).double().softmax(-1).cpu().numpy() for head in outputs[0]
    }


def predict(model: nn.Module, split: Split) -> np.ndarray:
    """Probabilities (utterances, classes) of the model as a whole, in float64, in the order of the split."""
    return predict_heads(model, split)["fused"]


def score_heads(model: nn.Module, split: Split, classes: int) -> dict[str, Mapping[str, float]]:
    """Every metric of every head on the labelled utterances of `split`, by head and metric."""
    labels = split.labels.numpy()
    return {
        head: all_metrics(confusion_matrix(labels, probabilities.argmax(-1), classes))
        for head, probabilities in predict_heads(model, split).items()
    }


def split_confusions(split: Split, probabilities: np.ndarray) -> np.ndarray:
    """Confusion matrices (conversations, classes, classes) of predicting the most probable class."""
    true, predicted = split.labels.numpy(), probabilities.argmax(-1)
    return conversation_confusions(true, predicted, split.conversations.numpy(), probabilities.shape[-1])


def fit_ensembles(model: nn.Module, validation: Split) -> None:
    """Choose the weights of the ensembles in `model`, if it has any, on the labelled utterances of `validation`."""
    for part in model.modules():
        if isinstance(part, PosteriorEnsemble):
            with reproducible(0, validation.device), torch.no_grad():
                members = [part.members(model(batch), batch) for batch in validation.batches(CONVERSATIONS)]
            labelled = validation.labelled
            posteriors, present = (torch.cat(both).cpu()[labelled] for both in zip(*members, strict=True))
            part.fit(posteriors, present, validation.labels[labelled])
