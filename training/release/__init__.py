"""From the raw release to what training reads.

In: stacks, masks and the table of circumferences. Out: a cache of square frames, and a split of its cases. May use
`acouslic`, `algorithm` and `training.recipe`.
"""
