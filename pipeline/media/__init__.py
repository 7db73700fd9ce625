"""Recordings: any container -> mono float32 samples at the rate that an encoder wants, decoded in processes of their
own.
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.media.clips import Clips, encoder_samples
    from pipeline.media.decoders import Decoders
    from pipeline.media.decoding import SAMPLE_RATES, Channels, Recording, Stretch, hash_file, judge, resample
else:
    __getattr__ = door(__name__, __file__)
