"""One training run.

In: a cache, a split, settings. Out: a run folder with a trained member and what it says of cases it has not seen. May
use `network`, `frames`, `release` and `recipe`.
"""
