"""eGeMAPS (Eyben et al., 2016; the version v02), the field's expert features, by openSMILE: an optional extra.

    egemaps               25 descriptors (pitch, jitter, shimmer, loudness, formants, spectrum) every 10 ms
    egemaps-functionals   88 statistics of them, one row a clip

openSMILE's licence is not this project's: it allows research, teaching and private use, and no product, nor one made
with features from it, without a licence of audEERING's.

Axes: clips, samples, frames, dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.encoders.front_end import Prepared
from pipeline.errors import EncoderError

EGEMAPS = {"egemaps": ("lld", 25), "egemaps-functionals": ("func", 88)}  # name: openSMILE's level, dim
HIDDEN = 640  # samples at both ends of a clip that have no frame: a frame sees 60 ms, and three are smoothed


class Egemaps:
    """Clips -> eGeMAPS, each clip by itself; on the host."""

    sample_rate, hop, receptive_field, normalise = 16_000, 160, 960, False
    side_by_side = 0

    def __init__(self, name: str) -> None:
        """`name` is one of `EGEMAPS`.

        Raises:
            EncoderError: openSMILE is not installed.
        """
        try:
            import opensmile
        except ImportError as error:
            raise EncoderError(
                f"audio.encoder {name} needs opensmile, which cannot be imported ({error}): pip install "
                "'path/to/erc-fusion[egemaps]'; its licence allows research, and no commercial use"
            ) from None
        level, self.dim = EGEMAPS[name]
        self._one_row = level == "func"
        self._smile = opensmile.Smile(feature_set="eGeMAPSv02", feature_level=level)
        self.version = str(opensmile.__version__)
        self.device = torch.device("cpu")

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`."""
        return 1 if self._one_row else (samples - HIDDEN) // self.hop

    def budget_seconds(self) -> float:
        """Clips are encoded one by one: a batch is what is fetched and written at once."""
        return 60.0

    def prepare(self, clip: Tensor) -> Prepared:
        """Nothing more can be done to a clip before it is its turn."""
        return Prepared(clip, None)

    def __call__(self, clips: Sequence[Prepared], finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Clips -> (frames, dim) each."""
        found = [self._smile.process_signal(clip.samples.numpy(), self.sample_rate) for clip in clips]
        return [finish(torch.from_numpy(table.to_numpy("float32", copy=True))[:, None]) for table in found]
