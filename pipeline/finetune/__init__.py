"""Fine-tuning: an encoder learns from the labels of train, is chosen on validation, and becomes an ordinary folder.

examples.py   which utterances take part; recordings -> clips on disk
learners.py   an encoder with a classifier on top, and how it is saved without
scores.py     scores on validation
trainer.py    Hugging Face's Trainer, epoch by epoch, resumable
stage.py      the command: from the manifest to the finished folder
"""
