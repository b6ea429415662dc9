"""Trained members, or checkpoints of the published code, become the artifact that the container runs.

In: run folders. Out: a checked artifact with its calibration, thresholds and measured precision. May use every other
room but `phantom`.
"""
