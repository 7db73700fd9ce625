"""What `benchmarks/extraction.py` measures, one subject a module."""
