"""Every setting of a training run.

In: what the user asks for. Out: frozen settings, checked against each other. May use `acouslic` alone.
"""
