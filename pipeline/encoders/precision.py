"""Encoders in bfloat16, which prove themselves against float32 on the very device before they encode anything.

A probe is encoded in float32, then the weights of matrix products are cast, then the probe is encoded again: each input
alone and all of them in a padded batch. What is wrong in reduced precision alone (a kernel, a mask that is ignored)
shows as a row whose cosine with its float32 row is too low, and the encoder is refused with the first layer that
disagrees (`pipeline.settings.check_agreement`).
"""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.encoders.exact import widen_narrow_groups
from pipeline.settings import (
    PrecisionError,
    built_for_bfloat16,
    check_agreement,
    cores,
    full_float32,
    processor_name,
    ran_out_of_memory,
)

PROBE_FRAMES = (1, 15, 40)  # of speech
PROBE_HERTZ = 220.0
# what transformers calls the activation that a layer applies to a product and to nothing else, by the product's name
ACTIVATIONS = {"intermediate_dense": "intermediate_act_fn", "dense": "intermediate_act_fn", "fc1": "activation_fn"}

Rows = Mapping[str, Tensor]  # by layer, in the order of computation: (rows, dim)

proven: set[tuple[str, str, str]] = set()  # weights, layers and device: once a process is enough
_packing = Lock()


class Probe(NamedTuple):
    """Inputs of an encoder that are looked at alone and together."""

    inputs: Sequence[Any]
    depth: int | None = None  # only so many layers of the model, where all of them would take too long


class Reducible(Protocol):
    """An encoder that can go from float32 to bfloat16."""

    device: torch.device

    def probes(self) -> Sequence[Probe]:
        """What to look at, the same every time."""

    def look(self, inputs: Sequence[Any], depth: int | None) -> Rows:
        """What the layers give for inputs that are encoded together, padding left out."""

    def reduce(self) -> None:
        """Compute in bfloat16 from now on."""


def reduce_precision(encoder: Reducible, decisive: Sequence[str], *, who: str, key: str, weights: str) -> None:
    """Have `encoder` compute in bfloat16, once it has proved itself.

    Args:
        decisive: the layers that are kept as features.
        who, key: the encoder and the parameter that asks for bfloat16, for the message.
        weights: hash of the encoder's weights.

    Raises:
        PrecisionError: it gives other features than in float32.
    """
    proof = weights, ",".join(decisive), str(encoder.device)
    if proof in proven:
        encoder.reduce()
        return
    with torch.inference_mode(), full_float32():
        probes = encoder.probes()
        expected = [_alone(encoder, probe) for probe in probes]
        encoder.reduce()
        for probe, rows in zip(probes, expected, strict=True):
            used = decisive if probe.depth is None else [list(rows)[-1]]
            for found in _reduced(encoder, probe, who, key):
                check_agreement(rows, found, used, who=who, key=key, device=encoder.device)
    proven.add(proof)


def _reduced(encoder: Reducible, probe: Probe, who: str, key: str) -> list[Rows]:
    """The rows of a probe, each input alone and all together; code that is for float32 only is named."""
    try:
        return [_alone(encoder, probe), *([] if len(probe.inputs) == 1 else [encoder.look(*probe)])]
    except (RuntimeError, TypeError) as error:  # as kernels and architectures have it
        if ran_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PrecisionError(f"{who} cannot compute in bfloat16 ({reason}); set {key}: float32") from None


def _alone(encoder: Reducible, probe: Probe) -> Rows:
    each = [encoder.look([one], probe.depth) for one in probe.inputs]
    return {layer: torch.cat([rows[layer] for rows in each]) for layer in each[0]}


def ready_for_inference(module: nn.Module) -> None:
    """Do once what a forward pass would do each time: weight norm."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            with cores(1):
                for name in list(part.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    module.requires_grad_(False)


@cache
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are faster here from weights that oneDNN has laid out once (docs/extraction.md).

    In bfloat16 torch takes oneDNN in any case, and would lay them out anew for each product. In float32 it takes
    Intel's library, which is slower on AMD's processors and as fast on Intel's own.
    """
    x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return built_for_bfloat16(device) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and "intel" not in processor_name(device).lower()


def shapes_cost(device: torch.device) -> bool:
    """Whether oneDNN takes many milliseconds for a product in bfloat16 of a shape that it has not had before."""
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_amx_tile_supported()


class Packed:
    """x -> x @ weight.T + bias in the precision of a weight that oneDNN has laid out once as it multiplies it.

    Shape:
        weight: (dim out, dim in), float32 or bfloat16
        x: (..., dim in)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        # the exact GELU, not that by tanh
        self._behind: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        """(..., dim in) -> (..., dim out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._weight.dtype), self._weight, self._bias, *self._behind
        )
        return y


def pack_products(module: nn.Module) -> None:
    """Have linear layers compute by `Packed`, where that is faster.

    A weight is packed when its layer is first called, and the plain one is let go then: layers whose weights are used
    otherwise than by calling them, such as those of WavLM's attention, keep theirs.
    """
    for parent in module.modules():
        for name, part in parent.named_children():
            weight = part._parameters.get("weight")  # that of a layer which was cut away is gone
            if type(part) is nn.Linear and weight is not None and packs(weight.device, weight.dtype):
                gelu = _take_gelu(parent, name)
                part.forward = partial(_pack_first, part, gelu)  # type: ignore[method-assign]


def _take_gelu(parent: nn.Module, name: str) -> bool:
    """Whether a GELU follows the product `name` and nothing comes between; it is then taken out of the model."""
    behind = ACTIVATIONS.get(name, "")
    taken = type(getattr(parent, behind, None)).__name__ == "GELUActivation"
    if taken:
        setattr(parent, behind, nn.Identity())
    return taken


def _pack_first(part: nn.Linear, gelu: bool, x: Tensor) -> Tensor:
    with _packing:  # of two threads that call the layer for the first time, one packs it
        if len(part.weight):
            part.forward = Packed(part.weight.data, part.bias, gelu).__call__  # type: ignore[assignment, method-assign]
            part.weight = nn.Parameter(part.weight.data[:0].clone(), requires_grad=False)
    packed: Tensor = part.forward(x)
    return packed


def stay_narrow(module: nn.Module) -> Callable[[], None]:
    """Let half-precision matrices lie in memory as their checkpoint has them, while `module` computes in float32.

    Each is widened for the time of its product. Vectors (norms, biases) become float32, and so does what an embedding
    gives, exactly: the features are those of the same weights in float32.

    Returns:
        What ends the widening, for `cast_products`; embeddings go on to give float32.
    """
    hooks = []
    for part in module.modules():
        for weight in part.parameters(recurse=False):
            if weight.dim() < 2:
                weight.data = weight.data.float()
        if isinstance(part, nn.Embedding):
            part.register_forward_hook(partial(_widened, scale=_take_scale(part)))
        elif any(weight.dtype != torch.float32 for weight in part.parameters(recurse=False)):
            narrow: list[tuple[nn.Parameter, Tensor]] = []
            hooks.append(part.register_forward_pre_hook(partial(_widen, narrow=narrow)))
            hooks.append(part.register_forward_hook(partial(_narrow, narrow=narrow), always_call=True))

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


def _take_scale(embedding: nn.Embedding) -> float:
    """Gemma multiplies by it in the precision of its weights; taken away here, to multiply in float32."""
    scale = getattr(embedding, "embed_scale", None)
    if not isinstance(scale, Tensor):
        return 1.0
    exact = float(getattr(embedding, "scalar_embed_scale", scale))
    scale.fill_(1.0)
    return exact


def _widened(part: nn.Module, args: Any, output: Tensor, scale: float) -> Tensor:
    wide = output.float()
    return wide if scale == 1.0 else wide * scale


def _widen(part: nn.Module, args: Any, narrow: list[tuple[nn.Parameter, Tensor]]) -> None:
    for weight in part.parameters(recurse=False):
        narrow.append((weight, weight.data))
        weight.data = weight.data.float()


def _narrow(part: nn.Module, args: Any, output: Any, narrow: list[tuple[nn.Parameter, Tensor]]) -> None:
    for weight, stored in narrow:
        weight.data = stored
    narrow.clear()


def cast_products(module: nn.Module) -> None:
    """Weights of matrix products and convolutions in bfloat16, cast once, and packed where that is faster.

    Norms stay in float32, and with them the stream that the layers add to.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d) or type(part).__name__ == "Conv1D":  # GPT-2's name for a product
            for weight in part.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16)
    widen_narrow_groups(module)
    pack_products(module)


def layer_name(number: int) -> str:
    """What messages call a hidden state."""
    return f"layer {number}" if number else "layer 0 (projection and positions)"


def noise_and_tones(lengths: Sequence[int], sample_rate: int, generator: torch.Generator) -> list[Tensor]:
    """Clips (samples,), by turns noise and a tone."""
    tone = torch.sin(2 * math.pi * PROBE_HERTZ / sample_rate * torch.arange(max(lengths)))
    noise = torch.randn(max(lengths), generator=generator)
    return [(tone + 0.1 * noise if number % 2 else noise)[:length] for number, length in enumerate(lengths)]
