"""Which frames show the plane.

In: what the engine says of frames. Out: every frame's probabilities, the frames called positive, the candidates in
order. May use `engine`, `frames`, `model` and `process`.
"""
