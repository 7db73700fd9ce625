"""Fine-tuning: an encoder learns from the labels of train, is chosen on validation, and becomes an ordinary folder.

examples.py   which utterances take part; recordings -> clips on disk; scores on validation
learners.py   an encoder with a classifier on top, and how it is saved without
trainer.py    Hugging Face's Trainer, epoch by epoch, resumable
folder.py     what is written, whole or not at all
stage.py      the command: from the manifest to the finished folder
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.finetuning.folder import turn_off
    from pipeline.finetuning.stage import finetune_audio, finetune_text
else:
    __getattr__ = door(__name__, __file__)
