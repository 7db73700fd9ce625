"""The self-check of fine-tuning in bfloat16: the model's hidden states under autocast against those in float32.

It is that of extraction (`pipeline.encoders.precision`), on the model as it is about to learn.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.precision import Probe, reduce_precision
from pipeline.finetune.examples import Example
from pipeline.finetune.learners import Learner


def check_precision(learner: Learner, device: str, key: str) -> None:
    """Raise PrecisionError where `learner.model` gives other states in bfloat16 than in float32 on `device`.

    `key` is the parameter that asks for bfloat16.
    """
    model = learner.model
    learning = model.training
    model.to(device).eval()
    layers = _UnderAutocast(learner, torch.device(device))
    who = f"encoder {learner.source.name}"
    reduce_precision(layers, [layers.last], who=who, key=key, weights=f"fine-tuning {learner.weights}")
    model.train(learning)


class _UnderAutocast:
    """A learner as `reduce_precision` looks at it."""

    def __init__(self, learner: Learner, device: torch.device) -> None:
        self.device = device
        self.last = f"layer {learner.model.config.num_hidden_layers}"
        self._learner, self._reduced = learner, False

    def reduce(self) -> None:
        self._reduced = True

    def probes(self) -> Sequence[Probe]:
        return [Probe(self._learner.probes())]

    def look(self, inputs: Sequence[Tensor], depth: int | None) -> dict[str, Tensor]:
        batch = self._learner.collate([Example(one, 0) for one in inputs])
        arguments: dict[str, Any] = {name: x.to(self.device) for name, x in batch.items() if name != "labels"}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            states = self._learner.model(**arguments, output_hidden_states=True).hidden_states
        lengths = [self._learner.rows(one) for one in inputs]
        return {
            f"layer {number}": torch.cat([rows[:count] for rows, count in zip(state.float(), lengths, strict=True)])
            for number, state in enumerate(states)
        }
