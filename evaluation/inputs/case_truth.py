"""What is known of a case: its reference, as the whole evaluation passes it around.

Plain data, small enough to be sent between processes: masks are bit-packed and only of annotated frames.
"""

from dataclasses import dataclass, field

import numpy as np

from acouslic.geometry import sweep_ranges


@dataclass(frozen=True, eq=False)
class CaseTruth:
    """The reference of one case: a label for every frame, masks of the annotated ones, circumferences by sweep."""

    case: str
    subject_id: str | None
    frame_labels: np.ndarray
    """uint8 (F,): 0 nothing, 1 an optimal plane, 2 a suboptimal plane (a frame holding both counts as optimal)."""
    sweep_ac_mm: tuple[float | None, ...]
    """Reference circumference of each sweep in order; None where the sweep has none."""
    rows: int
    columns: int
    spacing_mm: tuple[float, float] | None
    """Of the reference file, (row, column); None where that file states none worth trusting."""
    annotated_frames: np.ndarray
    """int64 (k,): ascending indices of the frames with any label."""
    packed_masks: np.ndarray = field(repr=False)
    """uint8 (k, R, ceil(C / 8)): their masks (label 1 or 2), `numpy.packbits` along columns."""

    @property
    def frames(self) -> int:
        """Frames of the stack, F."""
        return len(self.frame_labels)

    def mask(self, frame_index: int) -> np.ndarray:
        """The pixels with any label in a frame, bool (R, C); all False where it has none.

        A negative index counts from the end, as in numpy: the official evaluator looks at frame -1, the last one,
        where no frame was chosen. Raises IndexError outside the stack.
        """
        if not -self.frames <= frame_index < self.frames:
            raise IndexError(f"frame {frame_index} of a stack of {self.frames}")
        frame_index %= self.frames
        position = int(np.searchsorted(self.annotated_frames, frame_index))
        if position == len(self.annotated_frames) or self.annotated_frames[position] != frame_index:
            return np.zeros((self.rows, self.columns), dtype=bool)
        return np.unpackbits(self.packed_masks[position], axis=-1, count=self.columns).astype(bool)

    def annotated_sweeps(self) -> tuple[bool, ...]:
        """For each sweep of the stack, whether it has a reference circumference (the paper's choice of sweeps)."""
        values = self.sweep_ac_mm
        return tuple(
            index < len(values) and values[index] is not None for index in range(len(sweep_ranges(self.frames)))
        )
