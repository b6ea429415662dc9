"""Scores submissions: predictions and reference in, metrics and a report out. Never torch.

The ways in are here: `__main__` (the platform), `local` (a folder of outputs), `pack` (the ground truth of a phase),
`compare` (two runs), `frames` (frame scores without masks). A case goes through `case_evaluation`, all cases through
`evaluate`, and from there into files through `run` and `outputs`. The rooms, each of which may use only those before
it:

    inputs    what strangers hand in, and the reference, read with suspicion
    metrics   the official metrics, frame F1, intervals: numbers from arrays
    report    one offline page
"""
