"""What the challenge's masks say of a frame, and what choosing it is worth."""

import numpy as np
from numpy.typing import NDArray

OPTIMAL, SUBOPTIMAL = 1, 2
"""Labels of annotated frames; all others have 0."""
SUBOPTIMAL_CREDIT = 0.6


def frame_worth(labels: NDArray[np.uint8], frame_index: int) -> float:
    """The challenge's WFSS of choosing this frame of a case, by the labels (F,) of all: 1 for an optimal one, 0.6 for a
    suboptimal one (1 where the case has no optimal one), 0 for one without annotation."""
    label = labels[frame_index]
    if label == OPTIMAL:
        return 1.0
    if label == SUBOPTIMAL:
        return SUBOPTIMAL_CREDIT if (labels == OPTIMAL).any() else 1.0
    return 0.0
