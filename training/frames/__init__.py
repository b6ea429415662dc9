"""Which frames a step sees, and how they are changed.

In: cases of a cache, settings, seed and epoch. Out: batches of frames with their masks and labels. May use `release`
and `recipe`.
"""
