"""The folder that fine-tuning writes: a note while it is off, else an encoder that appears whole or not at all.

No heavy imports: with fine-tuning off, its command must cost nothing.
"""

import logging
import shutil
from pathlib import Path

from pipeline.encoders import FINGERPRINT, NOTE, is_whole, read_note, write_note
from pipeline.errors import StoreError
from pipeline.settings import publish, sole_writer

HEADING = "# Fine-tuned encoder"  # of the card in a folder of ours, which may be replaced

log = logging.getLogger(__name__)


def check_replaceable(output: Path) -> None:
    """Refuse at once what must not be deleted in the end."""
    if not output.exists():
        return
    card = output / NOTE
    ours = output.is_dir() and (
        not any(output.iterdir())
        or read_note(output) is not None
        or (card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith(HEADING))
    )
    if not ours:
        raise StoreError(f"{output}: exists and is not a fine-tuned encoder; name another folder with --output")


def is_there(output: Path, fingerprint: str, overwrite: bool) -> bool:
    """Whether the encoder of this fingerprint is in `output`, undamaged.

    Raises:
        StoreError: another one is, and `overwrite` is not given.
    """
    if not (output / "config.json").exists():
        return False
    file = output / FINGERPRINT
    if file.exists() and file.read_text(encoding="utf-8", errors="replace").split("\n")[0] == fingerprint:
        if is_whole(output):
            return True
        log.warning("%s: damaged, or edited since it was written; it is fine-tuned again", output)
        return False
    if overwrite:
        return False
    raise StoreError(
        f"{output}: holds an encoder that was fine-tuned with other parameters, utterances, weights or versions; name "
        "another folder (--output) to keep it, or replace it with --overwrite"
    )


def turn_off(output: Path, modality: str) -> str:
    """Write the note that fine-tuning is off to `output`, and return the line of outcome.

    Raises:
        StoreError: a fine-tuned encoder is there, which would be lost, or something else.
    """
    check_replaceable(output)
    if (output / "config.json").exists():
        raise StoreError(
            f"{output}: holds a fine-tuned encoder, and {modality}.finetune.epochs is 0; delete the folder if it may "
            "go, or set epochs above 0"
        )
    with sole_writer(output):
        write_note(output, modality)
    return f"{output}: fine-tuning is off ({modality}.finetune.epochs: 0)"


def hand_over(finished: Path, output: Path, work: Path) -> None:
    """Publish `finished` as `output`; killed in between, the next run finds every epoch done and does it again."""
    for path in finished.iterdir():
        path.chmod(0o644)  # safetensors lets the owner alone read its files
    publish(finished, output)
    shutil.rmtree(work)
