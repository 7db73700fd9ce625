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

Axes: pieces, samples, frames, channels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.exact import Convolutions


class FrontEnd:
    """Clips -> frames in front of the transformer.

    Args:
        extractor: the model's `feature_extractor`.
        dtype: of the arithmetic behind the first convolution, which is always float32.
        piece_frames: longer clips are worked off in pieces of so many frames.
        together: whether the pieces of a call are padded and encoded at once, or one by one, which takes no padding
            and keeps what is in work within the processor's cache.
    """

    def __init__(
        self, extractor: Any, convolutions: Convolutions, dtype: torch.dtype, piece_frames: int, together: bool
    ) -> None:
        self._convolutions = convolutions
        self._piece_frames, self._together = piece_frames, together
        layers = list(extractor.conv_layers)
        self._first = _First(layers[0])
        self._others = [_Layer(layer, dtype) for layer in layers[1:]]
        self._dtype = dtype

    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips (samples,) of at least one frame -> (frames, channels) each, on the clips' device."""
        folded = [self._first.fold(clip) for clip in clips]
        pieces = [piece for index, clip in enumerate(clips) for piece in self._cut(index, len(clip))]
        done: list[list[Tensor]] = [[] for _ in clips]
        for group in [pieces] if self._together else [[piece] for piece in pieces]:
            frames = self._encode([clips[p.clip][p.start : p.end] for p in group], [folded[p.clip] for p in group])
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

    def _encode(self, pieces: Sequence[Tensor], folded: Sequence["_Folded"]) -> Tensor:
        """(pieces, frames, channels); frames of padding hold anything."""
        x = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
        x = self._first(x, folded).to(self._dtype)
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


@dataclass(frozen=True)
class _Folded:
    """Weights (kernel, channels) and bias (channels,) of the first convolution, for one clip."""

    weight: Tensor
    bias: Tensor


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

    def fold(self, clip: Tensor) -> _Folded:
        """What the convolution is for this clip (samples,), its norm over time included."""
        if self._group_norm is None:
            return _Folded(self._weight, self._bias)
        windows = clip.double().unfold(0, self._kernel, self._stride)  # (frames, kernel)
        mean = windows.mean(dim=0)
        centred = windows - mean
        covariance = centred.T @ centred / len(windows)  # (kernel, kernel)
        weight = self._weight.double()
        variance = (weight * (covariance @ weight)).sum(dim=0)
        scale = self._group_norm.weight * torch.rsqrt(variance + self._group_norm.eps)
        shift = self._group_norm.bias - scale * (mean @ weight)  # a bias of the convolution would cancel
        return _Folded((weight * scale).float(), shift.float())

    def __call__(self, x: Tensor, folded: Sequence[_Folded]) -> Tensor:
        """(pieces, samples) -> (pieces, frames, channels)."""
        windows = x.unfold(1, self._kernel, self._stride)  # (pieces, frames, kernel)
        if len(folded) == 1:
            y = torch.addmm(folded[0].bias, windows[0], folded[0].weight)[None]
        else:
            weights = torch.stack([one.weight for one in folded])
            y = torch.baddbmm(torch.stack([one.bias for one in folded])[:, None], windows, weights)
        return self._activation(y if self._layer_norm is None else self._layer_norm(y))


class _Layer:
    """Another convolution with its norm, if it has one, and activation."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self._kernel, self._stride = kernel, stride
        cuts = [*range(0, kernel, stride), kernel]
        taps = layer.conv.weight.permute(2, 1, 0)  # (kernel, channels in, channels out)
        self._weights = [taps[start:end].flatten(0, 1).to(dtype) for start, end in itertools.pairwise(cuts)]
        self._bias = None if layer.conv.bias is None else layer.conv.bias.to(dtype)
        self._norm = getattr(layer, "layer_norm", None)
        self._activation = layer.activation

    def __call__(self, x: Tensor) -> Tensor:
        """(pieces, frames, channels) -> (pieces, fewer frames, channels)."""
        pieces, length, channels = x.shape
        frames = (length - self._kernel) // self._stride + 1
        y = torch.empty(0)
        for number, weight in enumerate(self._weights):
            taps = weight.shape[0] // channels
            # frame t sees positions t * stride + number * stride and the `taps` - 1 behind: a view, no copy
            view = x.as_strided(
                (pieces, frames, taps * channels),
                (x.stride(0), self._stride * channels, 1),
                x.storage_offset() + number * self._stride * channels,
            )
            y = self._add(y, view, weight) if number else self._begin(view, weight)
        return self._activation(y if self._norm is None else self._norm(y))

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
