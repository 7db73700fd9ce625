"""The `audio` and `text` stages: the manifest's recordings or transcripts -> part files, on this machine or on many."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.extraction.cluster import extract_audio_on, extract_text_on
    from pipeline.extraction.engine import LOADERS
    from pipeline.extraction.stage import (
        Altered,
        Recordings,
        Work,
        collect,
        extract_audio,
        extract_text,
        file_size,
        fill,
        plan_audio,
        plan_clips,
        plan_text,
    )
else:
    __getattr__ = door(__name__, __file__)
