"""Draws blind sweeps of our own making, for the demo, the tests and the built-in case.

In: a seed. Out: a release in small (images, masks, circumferences). May use `acouslic` alone.
"""
