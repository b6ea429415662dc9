"""From candidate frames to what the case is given.

In: candidates and decoder probabilities. Out: one mask, its ellipse and circumference, and the files of a case. May use
every room before it.
"""
