"""What is trained: the tower with PEFT's adapters, and the algorithm's heads on it.

In: settings and foundation weights. Out: modules. May use `algorithm`, `acouslic` and
`training.recipe`.
"""
