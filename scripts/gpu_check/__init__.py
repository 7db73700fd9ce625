"""Checks what a GPU computes, and how fast, in one run that also works on a bare machine: `scripts/gpu_check.sh`."""
