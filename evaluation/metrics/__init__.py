"""Numbers from arrays: the official metrics, frame F1 in two protocols, agreement, calibration, intervals.

In: reference and prediction of a case, or the results of many. Out: finite numbers. May use `inputs`.
"""
