"""What `benchmarks/extraction.py` and `benchmarks/training.py` measure, one subject a module."""
