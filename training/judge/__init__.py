"""Reads what a network says: calibration, the half-way reading, thresholds.

In: out-of-fold scores of all members. Out: temperatures, `selection.half_way` and thresholds for the manifest. May use
every room before it.
"""
