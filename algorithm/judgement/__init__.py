"""Which frames show the plane.

In: what the engine says of frames. Out: every frame's probabilities, the frames called positive, the candidates in
order. May use `engine`, `frames`, `model` and `process`. In the order of a case:

- `score`: every frame gets a probability, from all members or from a gate;
- `refine`: which frames of a gate the members look at, round after round;
- `recheck`: beside half precision, the frames near a decision again in float32;
- `review`: a case head, where the artifact has one, judges frames with their case in view;
- `select_frame`: what is read from all that: positive frames, and the candidates in order.
"""
