"""Checks what a GPU computes, and how fast, in one run that also works on a bare machine: `scripts/gpu_check.sh`.

The order is that of what a user meets, and what is only slow comes last. Every result is on disk before the next one
begins, so a run that is cut short leaves the front of this list:

    machine     versions, and TF32 flags inside encoders and training
    models      every model: one epoch, save, load, evaluate, predict
    encoders    every architecture in both precisions, against the processor, alone against batched
    demo        recordings to score with those encoders, on processor and device
    agreement   logits, loss and gradients of every stage of every model against the processor
    repeats     the same weights from a second run and from an interrupted one
    memory      out of memory, and a clip of 20 minutes
    waits       where the processor waits for the device, in an epoch and in a batch
    training    HBAF at MELD's size: milliseconds, kernels and busy share; several processes
    extraction  hours of audio a minute, and where the time goes
"""
