"""The ensemble at speed: merged and stacked weights, the device's types and kernels, batches that fit the memory.

In: square frames, an artifact. Out: logits, embeddings and masks of every member. May use `frames`, `model` and
`process`.
"""
