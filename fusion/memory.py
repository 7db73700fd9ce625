"""How much memory features may take."""

from typing import Literal

import torch

from pipeline.settings import free_bytes

Memory = float | Literal["auto"]  # GB
SHARE = 0.5  # of the free memory; the rest is for models, batches and others


def memory_for_features(stated: Memory, device: torch.device) -> int:
    """Bytes, from `train.memory` (GB)."""
    return int(SHARE * free_bytes(device)) if stated == "auto" else int(stated * 1e9)
