"""Encoders: from clips and sentences to frames and tokens."""
