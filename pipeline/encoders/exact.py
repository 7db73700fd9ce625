"""What makes a wav2vec2-family model exact: a clip's states do not depend on the clips that share its batch.

Three places would break this under padding:

- the first convolution of the base models is followed by group norm *over time* (`ClipGroupNorm`: each clip's
  statistics are taken over its own frames only);
- positional convolutions, and those in the blocks of a Conformer, look across the end of a clip (padded positions are
  zeroed before each of them, which is what a clip alone sees beyond its end);
- attention (masked by the model itself).

Fine-tuning patches the model so. Extraction, which needs no gradients, has faster convolutions of its own
(`pipeline.encoders.front_end`) that give the same frames, and shares the rest.

Axes: clips, samples, frames.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import EncoderError

GROUP_WIDTH = 16  # channels of a group from which on grouped convolutions are right on every processor


@dataclass(frozen=True)
class Convolutions:
    """The convolutions that turn samples into frames."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, config: Any) -> "Convolutions":
        """Those of a wav2vec2-family configuration; raises EncoderError where they are none."""
        kernels, strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        if not all(type(size) is int and size > 0 for size in (*kernels, *strides)):
            raise EncoderError(
                f"{config.name_or_path}: its config.json says conv_kernel {list(kernels)}, conv_stride "
                f"{list(strides)}; expected numbers above 0"
            )
        return cls(kernels, strides)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next; 320 for wav2vec2."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees; 400 for wav2vec2."""
        field = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            field = (field - 1) * stride + kernel
        return field

    def frames(self, samples: int, depth: int | None = None) -> int:
        """Frames of a clip of `samples`, behind the first `depth` convolutions or behind all."""
        for kernel, stride in list(zip(self.kernels, self.strides, strict=True))[:depth]:
            samples = (samples - kernel) // stride + 1
        return samples

    def samples(self, frames: int) -> int:
        """The fewest samples that give this many frames.

        >>> Convolutions((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)).samples(2)
        720
        """
        return (frames - 1) * self.hop + self.receptive_field


def prepared(clip: Tensor, normalise: bool, receptive_field: int) -> Tensor:
    """A clip (samples,) normalised by its own statistics, then padded to one frame if it is shorter."""
    if normalise:
        clip = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
    return nn.functional.pad(clip, (0, max(0, receptive_field - len(clip))))


def padded(clips: Sequence[Tensor], samples: int = 0) -> tuple[Tensor, Tensor]:
    """Clips (samples,) -> (clips, samples), at least `samples` wide, and its mask, true = real."""
    batch = nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    batch = nn.functional.pad(batch, (0, max(0, samples - batch.shape[1])))
    lengths = torch.tensor([len(clip) for clip in clips])
    return batch, torch.arange(batch.shape[1])[None] < lengths[:, None]


class Padding(threading.local):
    """What the patched modules must know of the batch that their thread has in hand.

    While a model is trained it is read off the attention mask given to the model.
    """

    frame_mask: Tensor  # (clips, frames), true = real
    first_lengths: list[int]  # frames of each clip behind the first convolution

    def __init__(self, convolutions: Convolutions) -> None:
        self._convolutions = convolutions

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the model's forward pass."""
        mask: Tensor = kwargs["attention_mask"]  # (clips, samples)
        lengths = mask.sum(dim=1).tolist()
        frames = torch.tensor([self._convolutions.frames(length) for length in lengths], device=mask.device)
        width = torch.arange(self._convolutions.frames(mask.shape[1]), device=mask.device)
        self.frame_mask = width[None] < frames[:, None]
        self.first_lengths = [self._convolutions.frames(length, depth=1) for length in lengths]

    def zero(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """A hook before a convolution over frames: (clips, channels, frames), zero where padded."""
        return (args[0] * self.frame_mask[:, None, :],)


class ClipGroupNorm(nn.Module):
    """Group norm over time whose statistics are those of each clip's real frames."""

    def __init__(self, norm: nn.GroupNorm, padding: Padding) -> None:
        super().__init__()
        self.norm = norm
        self._padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(clips, channels, frames) -> the same shape; padded frames come back as zeros."""
        normed = torch.zeros_like(x)
        for index, length in enumerate(self._padding.first_lengths):
            normed[index : index + 1, :, :length] = self.norm(x[index : index + 1, :, :length])
        return normed


def make_exact(model: Any) -> None:
    """Patch the modules through which padding would reach real frames; `model` must then be given attention masks."""
    padding = Padding(Convolutions.of(model.config))
    model.register_forward_pre_hook(padding.observe, with_kwargs=True)
    first = model.feature_extractor.conv_layers[0]
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        first.layer_norm = ClipGroupNorm(first.layer_norm, padding)
    zero_before_convolutions(model, padding)


def zero_before_convolutions(model: Any, padding: Padding) -> None:
    """Have padded frames be zero before each convolution that looks at other frames."""
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            module.register_forward_pre_hook(padding.zero)


def widen_narrow_groups(module: nn.Module) -> None:
    """Have grouped convolutions of few channels a group and an even kernel compute with `GROUP_WIDTH`, the others zero.

    oneDNN 3.10.2 (torch 2.11) computes grouped convolutions in bfloat16 wrongly on processors with AMX, by more than
    the size of the result, where a group has fewer than 16 channels and the kernel is even. Zeros add nothing to a
    sum, so a wider group gives the same result; the names and shapes of weights stay as they are. wav2vec2-base has 48
    channels a group and is left alone.
    """
    for part in module.modules():
        if not isinstance(part, nn.Conv1d) or part.groups == 1 or part.kernel_size[0] % 2:
            continue
        if part.in_channels < GROUP_WIDTH * part.groups:
            part._conv_forward = partial(_convolve_widened, part)  # type: ignore[method-assign]


def _convolve_widened(conv: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(clips, channels, frames) -> (clips, channels, frames), as `conv` would."""
    groups, outputs, inputs = conv.groups, weight.shape[0] // conv.groups, weight.shape[1]
    more_inputs, more_outputs = GROUP_WIDTH - inputs, max(0, GROUP_WIDTH - outputs)

    x = nn.functional.pad(x.unflatten(1, (groups, inputs)), (0, 0, 0, more_inputs)).flatten(1, 2)
    weight = weight.unflatten(0, (groups, outputs))  # (groups, outputs, inputs, kernel)
    weight = nn.functional.pad(weight, (0, 0, 0, more_inputs, 0, more_outputs)).flatten(0, 1)
    if bias is not None:
        bias = nn.functional.pad(bias.unflatten(0, (groups, outputs)), (0, more_outputs)).flatten()
    y = nn.functional.conv1d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)
    return y.unflatten(1, (groups, -1))[:, :, :outputs].flatten(1, 2)


def restore_names(model: Any) -> None:
    """Undo the one patch of `make_exact` that renames weights, so that the model can be saved for everybody."""
    first = model.feature_extractor.conv_layers[0]
    if isinstance(getattr(first, "layer_norm", None), ClipGroupNorm):
        first.layer_norm = first.layer_norm.norm
