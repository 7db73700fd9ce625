"""The note that lies in place of a fine-tuned encoder while fine-tuning is off.

The stages that encode depend on the folder of the fine-tuned encoder, so it is always there. No heavy imports: with
fine-tuning off, its command must cost nothing.
"""

from pathlib import Path

NAME = "README.md"
OFF = "Fine-tuning is off"


def write_note(folder: Path, modality: str) -> None:
    """Write the note of `modality` (audio or text) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(
        f"{OFF}, so no encoder is here. To have one, set {modality}.finetune.epochs above 0 in params.yaml and run "
        f"dvc repro, or pipeline-finetune --modality {modality}.\n",
        encoding="utf-8",
    )


def read_note(folder: Path) -> str | None:
    """What the note in `folder` says; None where there is none."""
    try:
        note = (folder / NAME).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return note if note.startswith(OFF) else None
