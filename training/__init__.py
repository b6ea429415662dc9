"""Makes the models: raw release in, trained artifact out.

The commands of several steps are here (`fit`, `ensemble`, `table`, `demo`); `__main__` names them all, and
`slurm_ensemble.sh` makes jobs of an ensemble's folds. The rooms, each of which may use only those before it:

    phantom    draws blind sweeps of our own making
    recipe     every setting of a run
    release    the raw release becomes a cache, and its cases are split
    frames     which frames a step sees, and how they are changed
    network    what is trained: the tower with adapters and heads
    learn      one run, from settings to a trained member
    judge      calibration, reading and thresholds, from what members say of unseen cases
    export     trained members, or published checkpoints, become an artifact
"""
