"""The challenge's score: how much circumference, overlap and choice of the frame count.

Source: the official evaluation method of ACOUSLIC-AI, commit ebf14b3.
"""

CIRCUMFERENCE_WEIGHT, OVERLAP_WEIGHT, SELECTION_WEIGHT = 0.5, 0.25, 0.25


def challenge_score(nae_circumference: float, dice_soft: float, wfss: float) -> float:
    """The score of a case, in 0..1, from three values in 0..1, the first of which is an error; or, from their means or
    standard deviations over cases, what the leaderboard calls the score's."""
    of_circumference = CIRCUMFERENCE_WEIGHT * (1 - nae_circumference)
    return of_circumference + OVERLAP_WEIGHT * dice_soft + SELECTION_WEIGHT * wfss
