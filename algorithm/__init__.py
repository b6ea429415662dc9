"""The container's job: sweeps in, chosen frame, mask and circumference out.

The ways in are here: `__main__` (the platform's exec mode), `serve` (its invoke mode), `predict` (people), with the
command line's `arguments` and the `case_list` they stand for, and the `pipeline` that all three share. The rooms follow
the data, and each may use only those before it:

    process     the running program: cores, signals, messages, times
    model       what a trained model is: manifest, weights, tower, adapters, heads
    frames      a file becomes square frames on the device
    engine      square frames become each member's logits, embeddings and masks
    judgement   logits become probabilities and candidates
    result      candidates become one outline, its circumference and the files of the case
"""
