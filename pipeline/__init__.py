"""Recordings and transcripts -> one file of cached wav2vec2 frames and BERT tokens."""
