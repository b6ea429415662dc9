"""Which field of view a case has, and how much of it a model sees that leaves out patches of the frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acouslic.fov import field_of_view, found_field_of_view
from algorithm.frames.preprocess import square_offsets
from algorithm.model.networks import TowerConfig

_WORTH_A_NOTE = 0.01
MOST_UNSEEN = 0.1
"""Share of the field of view outside the model's patches above which a case is not suitable."""


@dataclass(frozen=True)
class SeenField:
    """The field of view of a case."""

    fov: NDArray[np.bool_]
    """(rows, columns)."""
    unseen: float
    """Share of it that lies in patches which the model leaves out."""
    notes: tuple[str, ...]
    """Sentences on what is not as the challenge has it."""


def see_field(brightest: NDArray[np.uint8], tower: TowerConfig) -> SeenField:
    """The assumed field of view of frames of this size, or the one found where the frames show another.

    `brightest` is as in `acouslic.fov.found_field_of_view`. In the challenge's own cases the assumed one stays.
    """
    assumed = field_of_view(*brightest.shape)
    found = found_field_of_view(brightest, assumed)
    if found is None:
        return SeenField(assumed, 0.0, ())
    notes = [
        f"the frames show another field of view than the challenge's scanner has, {found.mean():.0%} of the frame; the "
        "one found is used"
    ]
    unseen = unseen_share(found, tower)
    if unseen > _WORTH_A_NOTE:
        notes.append(
            f"the model was trained inside the challenge's fan and does not see {unseen:.0%} of this field of view; "
            "use one that sees the whole frame"
        )
    return SeenField(found, unseen, tuple(notes))


def unseen_share(fov: NDArray[np.bool_], tower: TowerConfig) -> float:
    """Share of the field's pixels that lie in patches which the tower leaves out; 0 for one that sees the frame."""
    if tower.kept_patches is None:
        return 0.0
    rows, columns = fov.shape
    side, top, left = square_offsets(rows, columns)
    row, column = np.nonzero(fov)
    size = tower.grid_size
    patch = (row + top) * size // side * size + (column + left) * size // side
    return float(1 - np.isin(patch, tower.kept_patches).mean())
