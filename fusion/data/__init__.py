"""A split of the feature file: its rows on the device or mapped, and the batches that are drawn from it."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.data.rows import Chosen, Ragged, Resident, map_rows, pool
    from fusion.data.split import (
        FeatureDataset,
        FeatureItem,
        Split,
        conversation_offsets,
        encode_split,
        hold,
        load_for,
        load_split,
        number_speakers,
        refuse_learned,
        report_features,
        withhold,
    )
else:
    __getattr__ = door(__name__, __file__)
