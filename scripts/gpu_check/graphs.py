"""What CUDA graphs would spare: a training step, and the layers of an encoder, launched one by one and as one graph.

A graph has fixed shapes. Batches of training and of encoding have other shapes every time, so each case is the best
that graphs could do; whether buckets of shapes are worth their padding is decided by these numbers.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from fusion.batch import Batch
from fusion.runtime import reproducible
from fusion.training import build_split_model
from fusion.training.stage import StageRun, Training
from gpu_check.context import Case, Context
from gpu_check.encoders import build_encoder
from gpu_check.features import load_data, made_features, recipe_of

WARM_UPS = 3  # torch asks for some before a graph is captured
REPEATS = 20
CLOSE = 1e-5  # largest difference between both ways


def check_graphs(context: Context) -> None:
    """Steps of two models, and an encoder's layers in both precisions."""
    for model in ("hbaf", "hcam"):
        with context.case(f"a step of {model}") as case:
            work = partial(_step, *_first_stage(context, model))
            with reproducible(0, torch.device(context.device)):
                _compare(context, case, work)
    for precision in ("float32", "bfloat16"):
        reduced = torch.autocast(context.device, torch.bfloat16, enabled=precision == "bfloat16")
        with context.case(f"layers of wav2vec2, {precision}") as case, torch.inference_mode(), reduced:
            _compare(context, case, partial(_layers, *_encoder(context)))


def _first_stage(context: Context, model: str) -> tuple[StageRun, Batch]:
    """The first stage of a model without dropout, so that each step gives the same, and a batch."""
    recipe = recipe_of(context, model, "model.dropout=0")
    data = load_data(made_features(context, context.size.small), recipe, context.device)
    built = build_split_model(data.train, recipe, data.classes)
    training = Training(built, data.train, data.validation, recipe, 0, data.classes)
    run = StageRun(training.stages[0], training)
    run.stage.module.train()
    return run, next(iter(data.train.batches(recipe.train.conversations)))


def _step(run: StageRun, batch: Batch) -> list[Tensor]:
    """Gradients of the loss; the optimizer's step is left out, since it is one kernel already."""
    if gradients := [weight.grad for weight in run.weights if weight.grad is not None]:
        torch._foreach_zero_(gradients)
    run.training.loss(run.ask(batch), batch, run.stage.branches).total.backward()
    return [weight.grad for weight in run.weights if weight.grad is not None]


def _encoder(context: Context) -> tuple[Any, Tensor]:
    """Transformer layers, and the frames of a few clips that are equally long: (clips, frames, dim)."""
    model = transformers.AutoModel.from_pretrained(build_encoder(context, "wav2vec2 group norm")).eval()
    clips = max(2, len(context.size.encoders.clip_samples))
    x = torch.randn(clips, 150, context.size.encoders.hidden, generator=torch.Generator().manual_seed(0))
    return model.encoder.layers.to(context.device), x.to(context.device)


def _layers(layers: Any, x: Tensor) -> list[Tensor]:
    for layer in layers:
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
    return [x.float()]


def _compare(context: Context, case: Case, work: Callable[[], list[Tensor]]) -> None:
    """Milliseconds of `work` launched one by one and as a graph, which must give the same tensors."""
    expected = [one.clone() for one in work()]
    case["ms"] = _milliseconds(context, work)
    if not context.has_gpu:
        case.needs_a_gpu = True
        return
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            found = work()
    except RuntimeError as error:  # a finding, too: some operation waits, or cannot be part of a graph
        case.notes.append(f"no graph of it: {' '.join(str(error).split())[:200]}")
        return
    graph.replay()
    context.synchronize()
    case.at_most("difference", max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)), CLOSE)
    case["ms_as_a_graph"] = _milliseconds(context, graph.replay)
    case["times"] = float(case.values["ms"] or 0) / float(case.values["ms_as_a_graph"] or 1)


def _milliseconds(context: Context, work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        context.synchronize()
        started = time.perf_counter()
        work()
        context.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)
