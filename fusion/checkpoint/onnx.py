"""A trained model as one ONNX graph, which answers for one conversation a call.

    audio        (turns, frames, dim), or (turns, frames, layers, dim), float32
    audio_mask   (turns, frames) boolean, each row filled from the left
    text         (turns, tokens, dim), or (turns, tokens, layers, dim), float32
    text_mask    (turns, tokens)
    speakers     (turns,) int64, as in `fusion.batch.Turns`; only where the model looks at who speaks
    ->
    probabilities, logits   (turns, classes), probabilities calibrated by the temperature of validation; or
    scores                  (turns, 1)

Turns, frames and tokens are free; frames and tokens may be 0. What torch's exporter cannot follow is replaced, in a
copy of the model: a GRU, whose number of steps must stay open, by ONNX's own operator, and the layout of conversations
by that of a single one. The graph says in its metadata what `describe` returns.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusion.batch import Batch, Group, Turns
from fusion.checkpoint.folder import LoadedModel
from fusion.checkpoint.provenance import Provenance
from fusion.errors import OutputError
from fusion.layers import SequenceGRU
from fusion.params import Modalities

OPSET = 18  # of early 2023, so that runtimes of some years can read it
INPUTS = ("audio", "audio_mask", "text", "text_mask", "speakers")
SIZES = (5, 7, 6)  # turns, frames and tokens of the example that is traced: any, but different, and more than 1


class OnnxGRU(nn.Module):
    """What `SequenceGRU` does, as ONNX's operator.

    Shape:
        x: (sequences, positions, dim)
        mask: (sequences, positions), filled from the left
        returns: (sequences, positions, dim), zeros at padding
    """

    inner: Tensor
    recurrent: Tensor
    bias: Tensor

    def __init__(self, layer: SequenceGRU) -> None:
        super().__init__()

        def stack(name: str) -> Tensor:
            return torch.stack([_update_first(getattr(gru, name).detach()) for gru in layer.grus])

        self.width = int(layer.grus[0].hidden_size)  # type: ignore[arg-type]
        self.direction = {1: "forward", 2: "bidirectional"}[len(layer.grus)]
        self.register_buffer("inner", stack("weight_ih_l0"))  # (directions, 3 width, dim)
        self.register_buffer("recurrent", stack("weight_hh_l0"))  # (directions, 3 width, width)
        self.register_buffer("bias", torch.cat([stack("bias_ih_l0"), stack("bias_hh_l0")], dim=1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        sequences, positions, _ = x.shape
        lengths = mask.sum(dim=1, dtype=torch.int32)
        states = torch.onnx.ops.symbolic(
            "GRU",
            (x.transpose(0, 1), self.inner, self.recurrent, self.bias, lengths),
            {"hidden_size": self.width, "direction": self.direction, "linear_before_reset": 1},
            dtype=x.dtype,
            shape=(positions, len(self.bias), sequences, self.width),
        )
        return states.permute(2, 0, 1, 3).flatten(2)


class OneConversation(Turns):
    """The turns of a single conversation, all of which exist."""

    def to_grid(self, flat: Tensor) -> Tensor:
        return flat[None]

    def spread(self, flat: Tensor) -> Tensor:
        return flat[None]

    def to_flat(self, grid: Tensor) -> Tensor:
        return grid[0]

    @property
    def number(self) -> Tensor:
        return self.places

    @property
    def count(self) -> Tensor:
        return torch.full_like(self.places, self.places.shape[0])


AUDIO, TEXT = slice(0, 2), slice(2, 4)  # features and their mask, of what a graph is given


class ConversationModel(nn.Module):
    """A model that takes tensors of one conversation, see the module; `temperature` None: it tells scores.

    A modality that was withheld from it in training is nothing to it here, either, whatever is given.
    """

    def __init__(self, model: nn.Module, temperature: float | None, modalities: Modalities = "both") -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.withheld = {"both": (), "audio": (TEXT,), "text": (AUDIO,)}[modalities]

    def forward(
        self, audio: Tensor, audio_mask: Tensor, text: Tensor, text_mask: Tensor, speakers: Tensor
    ) -> tuple[Tensor, ...]:
        # one padded position each, so that no axis is empty: not every operator is defined there
        given = [F.pad(x, [0, 0] * (x.dim() - 2) + [0, 1]) for x in (audio, audio_mask, text, text_mask)]
        for pair in self.withheld:
            given[pair] = [torch.zeros_like(x) for x in given[pair]]
        places = torch.arange(audio_mask.shape[0], device=audio.device)
        batch = Batch(
            groups=[Group(places, *given)],
            order=places,
            labels=torch.full_like(places, -1),
            scores=torch.full_like(places, torch.nan, dtype=torch.float32),
            turns=OneConversation(torch.ones_like(places, dtype=torch.bool)[None], places, speakers),
        )
        logits = self.model(batch).logits
        return (logits,) if self.temperature is None else ((logits / self.temperature).softmax(dim=-1), logits)


def export_onnx(loaded: LoadedModel) -> bytes:
    """The file's content.

    Raises:
        OutputError: the libraries for it are missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise OutputError(
            f"ONNX needs the package {error.name}, which is not installed; "
            'pip install "path/to/erc-fusion[onnx]", or leave --onnx out'
        ) from error
    provenance = loaded.provenance
    modalities = provenance.recipe.model.modalities
    model = ConversationModel(with_onnx_grus(loaded.model), provenance.temperature, modalities).eval()
    turns, frames, tokens = Dim("turns"), Dim("frames"), Dim("tokens")
    axes = {"audio": {0: turns, 1: frames}, "text": {0: turns, 1: tokens}, "speakers": {0: turns}}
    with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # other kernels' outputs lie otherwise in memory
        traced = torch.export.export(
            model, _example(loaded.stored), dynamic_shapes={name: axes[name.removesuffix("_mask")] for name in INPUTS}
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["scores"] if provenance.temperature is None else ["probabilities", "logits"],
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose folders it was traced
    program.model.metadata_props.update(describe(provenance))
    content: Any = program.model_proto
    _name_axes(content.graph)
    if not any("speakers" in node.input for node in content.graph.node):
        del content.graph.input[INPUTS.index("speakers")]
    onnx.checker.check_model(content, full_check=True)
    return content.SerializeToString()


def describe(provenance: Provenance) -> dict[str, str]:
    """What a graph's metadata says: JSON each, null where there is nothing to say."""
    content = {
        "model": provenance.recipe.model.name,
        "seed": provenance.seed,
        "labels": list(provenance.labels),
        "audio_encoder": provenance.audio.fields if provenance.audio else None,
        "text_encoder": provenance.text.fields if provenance.text else None,
        "modalities": provenance.recipe.model.modalities,
        "audio_frames": provenance.recipe.model.audio_frames,
        "temperature": provenance.temperature,
        "features": provenance.features,
        "corpus": provenance.corpus.name if provenance.corpus else None,
        "licence": provenance.corpus.licence if provenance.corpus else None,
        "version": provenance.version,
    }
    return {f"erc.{name}": json.dumps(value, ensure_ascii=False, sort_keys=True) for name, value in content.items()}


def _name_axes(graph: Any) -> None:
    """Turns, frames and tokens instead of the symbols of the exporter, which goes by names no further."""
    audio, _, text, *_ = ([size.dim_param for size in given.type.tensor_type.shape.dim] for given in graph.input)
    names = {audio[0]: "turns", audio[1]: "frames", text[1]: "tokens"}
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = names[size.dim_param]
    del graph.value_info[:]  # sizes in between, in those symbols


def _example(stored: Mapping[str, tuple[int, int]]) -> tuple[Tensor, ...]:
    """Inputs of a model that takes such features, `LoadedModel.stored`."""
    turns, frames, tokens = SIZES
    given: list[Tensor] = []
    for name, positions in (("audio", frames), ("text", tokens)):
        layers, dim = stored[name]
        shape = (layers, dim) if layers > 1 else (dim,)
        given += [torch.zeros(turns, positions, *shape), torch.ones(turns, positions, dtype=torch.bool)]
    return (*given, torch.arange(turns))


def with_onnx_grus(model: nn.Module) -> nn.Module:
    """A copy on the CPU."""
    model = copy.deepcopy(model).cpu()
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, SequenceGRU):
                setattr(part, name, OnnxGRU(child))
    return model


def _update_first(weight: Tensor) -> Tensor:
    """The gates of torch (reset, update, candidate) in the order of ONNX (update, reset, candidate)."""
    reset, update, candidate = weight.chunk(3)
    return torch.cat([update, reset, candidate])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
