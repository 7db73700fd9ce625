"""Cached features -> trained fusion models and their scores."""
