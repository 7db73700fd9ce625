"""CMU-MOSI's standard splits, by video, and how many segments they have.

`sdk`: the standard folds of the CMU Multimodal SDK, 52 / 10 / 31 videos with 1,284 / 229 / 686 segments, which the
column `mode` of MMSA's label.csv states too. `62-31`: 62 videos for training and 31 for the test, 1,447 / 752 segments
(Poria et al., ACL 2017). No public list of its videos was found: name the 31 in `test_videos.txt`.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pipeline.datasets.mending import read_lines
from pipeline.datasets.turns import Counts
from pipeline.errors import DataError

TEST_VIDEOS = "test_videos.txt"
SDK = {
    "train": """
        03bSnISJMiM 0h-zjBukYpk 1DmNV9C1hbY 1iG0909rllw 2WGyTLYerpo 2iD-tVS8NPw 5W7Z1C_fDaE 6Egk_28TtTM 6_0THN4chvY
        73jzhE8R1TQ 7JsX8y1ysxY 8OtFthrtaJM 8d-gEyoeBzc 8qrpnFRGt2A 9J25DZhivz8 9T9Hf74oK10 9c67fiY0wGQ 9qR7uwkblbs
        Af8D0E4ZXaw BI97DNYfe5I BXuRRbG0Ugk Bfr499ggo-0 BioHAh1qJAQ BvYR0L6f2Ig Ci-AH39fi3Y Clx4VXItLTE Dg_0XKD0Mf4
        G-xst2euQUc G6GlGvlkxAQ GWuJjcEuzt8 HEsqda8_d0Q I5y0__X72p0 Iu2PFX3z_1s IumbAb8q2dM Jkswaaud0hk LSi-o-IrDMs
        MLal-t_vJPM Njd1F0vZSm4 Nzq88NnDkEk OQvJTdtJ2H4 OtBXNcAL_lE Oz06ZWiO20M POKffnXeBds PZ-lDQFboO8 QN9ZIUWUXsY
        Qr1Ca94K55A Sqr0AcuoNnk TvyZBvOMOTc VCslbP0mgZI VbQk4H8hgr0 Vj1wYRQjB-o W8NXH0Djyww""",
    "validation": """
        WKA5OygbEKI X3j2zQgwYgE ZAIRrfG22O0 ZUXBRvtny7o _dI--eQ6qVU aiEXnCPZubE atnd_PF-Lbs bOL9jKpeJRs bvLlb-M3UXU
        c5xsKMxpXnc""",
    "test": """
        c7UH_rxdZv4 cM3Yna7AavY cW1FSBF59ik cXypl4FnoZo d3_k5Xpfmik d6hH302o4v8 dq3Nf_lMPnE etzxEpPuc6I f9O3YtZ2VfI
        f_pcplsH_V0 fvVhgmXxadc iiK8YX8oH1E jUzDDGyPkXU k5Y_838nuGo lXPQBPVc5Cw nbWiPyCm4g0 nzpVDcQ0ywM ob23OKe5a9Q
        pLTX3ipuDJI phBUpBr1hSo rnaNMUZpvvg tIrG4oNLFzE tStelxIAHjw tmZoasNr4rU v0zCBqDeKcE vvZ4IcEtiZc vyB00TXsimI
        wMbj6ajWbic yDtzw_Y-7RU yvsjCA6Y5Fc zhpQhgha_KU""",
}
SDK_SPLITS = {video: split for split, videos in SDK.items() for video in videos.split()}
ALL = {"segments": 2_199, "videos": 93}
SEGMENTS = {"sdk": {"train": 1_284, "validation": 229, "test": 686}, "62-31": {"test": 752}}
VIDEOS = {"sdk": {"train": 52, "validation": 10, "test": 31}, "62-31": {"test": 31}}


def read_splits(protocol: Literal["sdk", "62-31"], root: Path, videos: Collection[str]) -> dict[str, str]:
    """Video -> split. Of `62-31`, whose validation split `pipeline.splits` makes, all `videos` have one.

    Raises:
        DataError: the list of test videos is missing, or names one that is not among `videos`.
    """
    if protocol == "sdk":
        return SDK_SPLITS
    path = root / TEST_VIDEOS
    if not path.exists():
        raise DataError(
            f"{path}: not there; dataset.protocol 62-31 takes the ids of its test videos from it, one a line "
            "(or set dataset.protocol: sdk)"
        )
    lines = [line.partition("#")[0].strip() for line in read_lines(path, Counter())]
    test = {line for line in lines if line}
    unknown = sorted(test - set(videos))
    if unknown:
        raise DataError(f"{path}: the corpus has no video '{unknown[0][:60]}'; mend the line")
    return {video: "test" if video in test else "train" for video in videos}


def published(protocol: Literal["sdk", "62-31"], with_splits: bool) -> Counts:
    """Counts of all segments and, `with_splits`, of those of the protocol."""
    segments = {"all": ALL["segments"], **(SEGMENTS[protocol] if with_splits else {})}
    videos = {"all": ALL["videos"], **(VIDEOS[protocol] if with_splits else {})}
    return {"utterances": segments, "conversations": videos, "recordings": segments}
