"""From a file to the tower's square frames.

In: the path of a sweep stack. Out: frames decoded in a thread, resized on the device. May use `model` (for the
parameters of preprocessing) and `process`.
"""
