"""The convolutions of wav2vec2-family models as matrix products: a clip's frames depend on nothing but the clip.

With channels last, a convolution of stride s and kernel k is a sum of ceil(k / s) matrix products over views of its
input: no copies, no transposed norms, and the speed of the machine's matrix product.

The first convolution of the base models is followed by group norm *over time*, with as many groups as channels: every
channel is brought to zero mean and unit variance over the clip, then scaled and shifted. Its output is linear in the
samples, so mean and variance follow from the first two moments of the k samples under the kernel:

    y_c[t] = w_c . x[t]          x[t] the k samples of frame t
    mean_c = w_c . m             m  (k,)    mean of x[t] over the frames of the clip
    var_c  = w_c' C w_c          C  (k, k)  their covariance

so the norm is folded into weights of the clip's own, w_c * scale_c, and a bias. Long clips can then be worked off in
pieces without another clip, another piece or padding ever showing in a frame. (This way of computing is ours; the
result is that of the published model.)

Behind them the positional convolution looks at 128 frames with 48 channels a group. On a processor that is the slowest
product of all, and by its spectrum it takes a fifth of the time (`LongConvolution`, docs/extraction.md).

Axes: pieces, samples, frames, channels.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.encoders.exact import Convolutions
from pipeline.encoders.precision import Packed, packs
from pipeline.encoders.transfer import upload

PLACES = 1 << 20  # of a kernel along a clip that are looked at together
LONG = 64  # frames of a kernel from which on its spectrum is faster


class Moments(NamedTuple):
    """Of the samples under a kernel that moves along a clip, in float64: what the norm over time follows from."""

    mean: Tensor  # (kernel,)
    covariance: Tensor  # (kernel, kernel)

    @classmethod
    def of(cls, clip: Tensor, kernel: int, stride: int) -> "Moments":
        """Those of a clip (samples,) of at least one kernel, in bounded memory however long it is."""
        windows = clip.double().unfold(0, kernel, stride)  # (places, kernel)
        mean = windows.mean(dim=0)
        covariance = torch.zeros(kernel, kernel, dtype=torch.float64)
        for some in windows.split(PLACES):
            centred = some - mean
            covariance += centred.T @ centred
        return cls(mean, covariance / len(windows))


class Prepared(NamedTuple):
    """A clip that is ready for the front end."""

    samples: Tensor  # (samples,), normalised, of at least one frame
    moments: Moments | None  # where the first convolution is followed by a norm over time
    speaker: "tuple[Tensor, Tensor] | None" = None  # mean and deviation (dim,) or (layers, dim) of the speaker's frames
    spectra: Sequence[Tensor] = ()  # of Whisper: (bands, 2 frames) of each window


class FrontEnd:
    """Clips -> frames in front of the transformer. Types are explicit: autocast, where it is on, has no say in here.

    Args:
        extractor: the model's `feature_extractor`.
        dtype: of the arithmetic behind the first convolution, which is always float32, as norms are.
        piece_frames: longer clips are worked off in pieces of so many frames.
        budget: samples, padding included, of the pieces that are encoded at once; at least one piece is, and with 0 no
            other, which keeps what is in work within a processor's cache.
        step: pieces are padded to a multiple of so many frames, so that products come in few shapes.
    """

    def __init__(
        self,
        extractor: Any,
        convolutions: Convolutions,
        dtype: torch.dtype,
        piece_frames: int,
        budget: int,
        step: int = 1,
    ) -> None:
        self._convolutions = convolutions
        self._piece_frames, self._budget, self._step = piece_frames, budget, step
        layers = list(extractor.conv_layers)
        self._first = _First(layers[0])
        self._others = [_Layer(layer, dtype) for layer in layers[1:]]
        self._dtype = dtype

    def prepare(self, clip: Tensor) -> Prepared:
        """What can be known of a clip (samples,) before it is on the device; called in threads that load clips."""
        kernel, stride = self._convolutions.kernels[0], self._convolutions.strides[0]
        return Prepared(clip, Moments.of(clip, kernel, stride) if self._first.normalises else None)

    def __call__(self, clips: Sequence[Prepared], device: torch.device) -> list[Tensor]:
        """Prepared clips -> (frames, channels) each, on `device`, whose other work goes on meanwhile."""
        lengths = [len(clip.samples) for clip in clips]
        moments = [clip.moments for clip in clips if clip.moments is not None]
        stacked = [torch.stack(some) for some in zip(*moments, strict=True)]  # means, covariances
        with torch.autocast(device.type, enabled=False):
            flat, *sent = upload([torch.cat([clip.samples for clip in clips]), *stacked], device)
            weights, biases = self._first.fold(*sent) if sent else self._first.plain(len(clips))
            return self._frames(flat.split(lengths), weights, biases)

    def _frames(self, clips: Sequence[Tensor], weights: Tensor, biases: Tensor) -> list[Tensor]:
        pieces = [piece for index, clip in enumerate(clips) for piece in self._cut(index, len(clip))]
        done: list[list[Tensor]] = [[] for _ in clips]
        for group in self._groups(pieces):
            x = nn.utils.rnn.pad_sequence([clips[p.clip][p.start : p.end] for p in group], batch_first=True)
            if missing := -max(piece.frames for piece in group) % self._step:
                x = nn.functional.pad(x, (0, missing * self._convolutions.hop))
            frames = self._encode(x, [weights[p.clip] for p in group], [biases[p.clip] for p in group])
            for row, piece in enumerate(group):
                done[piece.clip].append(frames[row, : piece.frames])
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in done]

    def _cut(self, clip: int, samples: int) -> list["_Piece"]:
        total, hop = self._convolutions.frames(samples), self._convolutions.hop
        starts = range(0, total, self._piece_frames)
        counts = [min(self._piece_frames, total - start) for start in starts]
        return [
            _Piece(clip, start * hop, start * hop + self._convolutions.samples(count), count)
            for start, count in zip(starts, counts, strict=True)
        ]

    def _groups(self, pieces: Sequence["_Piece"]) -> list[list["_Piece"]]:
        """Pieces that are encoded together: neighbours, within the budget."""
        groups: list[list[_Piece]] = []
        for piece in pieces:
            joined = [*groups[-1], piece] if groups else [piece]
            if groups and len(joined) * max(one.samples for one in joined) <= self._budget:
                groups[-1] = joined
            else:
                groups.append([piece])
        return groups

    def _encode(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        """(pieces, samples) -> (pieces, frames, channels); frames of padding hold anything."""
        x = self._first(x, weights, biases).to(self._dtype)
        for layer in self._others:
            x = layer(x)
        return x


@dataclass(frozen=True)
class _Piece:
    """Samples `start` .. `end` of a clip, which give `frames`."""

    clip: int
    start: int
    end: int
    frames: int

    @property
    def samples(self) -> int:
        return self.end - self.start


class _First:
    """The first convolution, from one channel, with its norm and activation; float32."""

    def __init__(self, layer: Any) -> None:
        self._kernel, self._stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self._weight = layer.conv.weight[:, 0].T.contiguous()  # (kernel, channels)
        self._bias = torch.zeros_like(self._weight[0]) if layer.conv.bias is None else layer.conv.bias
        norm = getattr(layer, "layer_norm", None)
        self._group_norm = norm if isinstance(norm, nn.GroupNorm) else None
        self._layer_norm = norm if isinstance(norm, nn.LayerNorm) else None
        self._activation = layer.activation
        if self._group_norm is not None and self._group_norm.num_groups != self._weight.shape[1]:
            raise AssertionError("group norm of the family has a group for each channel")

    @property
    def normalises(self) -> bool:
        """Whether a norm over time follows."""
        return self._group_norm is not None

    def plain(self, clips: int) -> tuple[Tensor, Tensor]:
        """The same weights (clips, kernel, channels) and biases (clips, channels) for every clip."""
        return self._weight.expand(clips, -1, -1), self._bias.expand(clips, -1)

    def fold(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (clips, kernel, channels) and biases (clips, channels) that hold each clip's norm over time.

        Shape:
            mean: (clips, kernel), float64
            covariance: (clips, kernel, kernel), float64
        """
        assert self._group_norm is not None
        weight = self._weight.double()
        variance = (weight * (covariance @ weight)).sum(dim=1)  # (clips, channels)
        scale = self._group_norm.weight * torch.rsqrt(variance + self._group_norm.eps)
        shift = self._group_norm.bias - scale * (mean @ weight)  # a bias of the convolution would cancel
        return (weight * scale[:, None]).float(), shift.float()

    def __call__(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        """(pieces, samples) -> (pieces, frames, channels)."""
        windows = x.unfold(1, self._kernel, self._stride)  # (pieces, frames, kernel)
        if len(weights) == 1:
            y = torch.addmm(biases[0], windows[0], weights[0])[None]
        else:
            y = torch.baddbmm(torch.stack(list(biases))[:, None], windows, torch.stack(list(weights)))
        return self._activation(y if self._layer_norm is None else self._layer_norm(y))


class _Layer:
    """Another convolution with its norm, if it has one, and activation."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self._kernel, self._stride = kernel, stride
        taps = layer.conv.weight.permute(2, 1, 0)  # (kernel, channels in, channels out)
        self._bias = None if layer.conv.bias is None else layer.conv.bias.to(dtype)
        self._norm = getattr(layer, "layer_norm", None)
        self._activation = layer.activation
        self._packed: Packed | None = None
        self._weights: list[Tensor] = []
        if packs(taps.device, dtype):
            gelu = self._norm is None and type(self._activation).__name__ == "GELUActivation"
            self._packed = Packed(taps.flatten(0, 1).T.to(dtype), self._bias, gelu)
            self._activation = nn.Identity() if gelu else self._activation
        else:
            cuts = [*range(0, kernel, stride), kernel]
            self._weights = [taps[start:end].flatten(0, 1).to(dtype) for start, end in itertools.pairwise(cuts)]

    def __call__(self, x: Tensor) -> Tensor:
        """(pieces, frames, channels) -> (pieces, fewer frames, channels)."""
        frames = (x.shape[1] - self._kernel) // self._stride + 1
        if self._packed is not None:
            y = self._packed(self._view(x, frames, 0, self._kernel))
        else:
            for number, weight in enumerate(self._weights):
                view = self._view(x, frames, number * self._stride, weight.shape[0] // x.shape[2])
                y = self._add(y, view, weight) if number else self._begin(view, weight)
        return self._activation(y if self._norm is None else self._norm(y.float())).to(x.dtype)

    def _view(self, x: Tensor, frames: int, first: int, taps: int) -> Tensor:
        """(pieces, frames, taps * channels): frame t sees positions t * stride + `first` and those behind; no copy."""
        pieces, _, channels = x.shape
        step = self._stride * channels
        start = x.storage_offset() + first * channels
        return x.as_strided((pieces, frames, taps * channels), (x.stride(0), step, 1), start)

    def _begin(self, view: Tensor, weight: Tensor) -> Tensor:
        if len(view) == 1:
            return (view[0] @ weight if self._bias is None else torch.addmm(self._bias, view[0], weight))[None]
        product = torch.bmm(view, weight.expand(len(view), *weight.shape))
        return product if self._bias is None else product + self._bias

    @staticmethod
    def _add(y: Tensor, view: Tensor, weight: Tensor) -> Tensor:
        if len(view) == 1:
            return y[0].addmm_(view[0], weight)[None]
        return y.baddbmm_(view, weight.expand(len(view), *weight.shape))


class LongConvolution:
    """A grouped convolution over frames by its spectrum, block by block (overlap-save); float32.

    A block of n places gives the n - kernel + 1 frames whose kernels lie within it. Blocks begin at multiples of that,
    whatever the batch, so frames depend on what they see alone.

    Shape:
        x: (clips, channels in, frames) -> (clips, channels out, frames + 2 * padding - kernel + 1)
    """

    def __init__(self, convolution: nn.Conv1d) -> None:
        kernel, self._padding = convolution.kernel_size[0], int(convolution.padding[0])
        self._block = 2 ** math.ceil(math.log2(2 * kernel))
        self._step, self._groups = self._block - kernel + 1, convolution.groups
        self._bias = None if convolution.bias is None else convolution.bias.data  # which is not cast with the module
        spectrum = torch.fft.rfft(convolution.weight.detach(), n=self._block)  # (channels out, in a group, places)
        grouped = spectrum.conj().unflatten(0, (self._groups, -1)).permute(0, 3, 2, 1)
        self._weight = grouped.flatten(0, 1).contiguous()  # (groups * places, in, out)

    @classmethod
    def replace(cls, module: nn.Module) -> None:
        """Have the long convolutions of `module` compute so; their plain weights are let go."""
        for part in module.modules():
            if isinstance(part, nn.Conv1d) and part.groups > 1 and part.kernel_size[0] >= LONG and part.stride == (1,):
                part.forward = cls(part).__call__  # type: ignore[assignment, method-assign]
                part.weight = nn.Parameter(part.weight.data[:0].clone(), requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        clips, frames = len(x), x.shape[2] + 2 * self._padding - (self._block - self._step)
        blocks = math.ceil(frames / self._step)
        behind = blocks * self._step + self._block - self._step - self._padding - x.shape[2]
        seen = nn.functional.pad(x.float(), (self._padding, behind)).unfold(2, self._block, self._step)
        spectrum = torch.fft.rfft(seen).unflatten(1, (self._groups, -1))  # (clips, groups, in, blocks, places)
        rows = spectrum.permute(1, 4, 0, 3, 2).reshape(len(self._weight), clips * blocks, -1)
        product = torch.bmm(rows, self._weight).view(self._groups, -1, clips, blocks, self._weight.shape[2])
        y = torch.fft.irfft(product.permute(2, 0, 4, 3, 1), n=self._block)[..., : self._step]
        y = y.flatten(3).flatten(1, 2)[:, :, :frames]
        return y if self._bias is None else y + self._bias[:, None]
