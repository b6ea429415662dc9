"""Shape and order of a case, as the challenge defines them (ACOUSLIC-AI release 1.1)."""

import itertools
from collections.abc import Sequence

SWEEPS_PER_CASE = 6
FRAMES_PER_SWEEP = 140
FRAMES_PER_CASE = SWEEPS_PER_CASE * FRAMES_PER_SWEEP
ROWS, COLUMNS = 562, 744
SPACING_MM = 0.28
"""In-plane pixel size of every released case; the official evaluator uses this value whatever a file says."""
GIVEN_SPACING_MM = (0.01, 5.0)
"""What a person may give as the size of a pixel, smallest and largest: anything else is another unit or a slip."""

_RELEASE_1_0_FRAMES, _RELEASE_1_0_FRAMES_PER_SWEEP = 720, 120


def sweep_ranges(frame_count: int) -> list[range]:
    """The frames of each sweep, in order: disjoint ranges that cover ``range(frame_count)``.

    840 frames are 6 sweeps of 140; the 720 of release 1.0 are 6 of 120. Any other stack is cut every 140 frames
    and its last sweep may be shorter. No frames: no sweeps.
    """
    length = _RELEASE_1_0_FRAMES_PER_SWEEP if frame_count == _RELEASE_1_0_FRAMES else FRAMES_PER_SWEEP
    return [range(start, min(start + length, frame_count)) for start in range(0, frame_count, length)]


def sweep_index(frame_index: int, frame_count: int) -> int:
    """The sweep (0, 1, ...) that holds a frame of a stack of ``frame_count`` frames."""
    if not 0 <= frame_index < frame_count:
        raise ValueError(f"frame {frame_index} is outside 0..{frame_count - 1}")
    return frame_index // len(sweep_ranges(frame_count)[0])


def consecutive_ranges(lengths: Sequence[int]) -> list[range]:
    """The frames of each sweep where their numbers of frames are known: disjoint ranges from 0 on, in order."""
    return list(itertools.starmap(range, itertools.pairwise(itertools.accumulate(lengths, initial=0))))


def index_of_sweep(frame_index: int, sweeps: Sequence[range]) -> int:
    """Which of `sweeps` (0, 1, ...) holds a frame."""
    for index, sweep in enumerate(sweeps):
        if frame_index in sweep:
            return index
    raise ValueError(f"frame {frame_index} is in none of {len(sweeps)} sweeps")


def told_apart(lengths: Sequence[int]) -> tuple[int, ...]:
    """The frames of each sweep as files tell them; empty where one file has a whole case of the challenge's length.

    Such a case is six sweeps behind one another, which its file does not tell apart.
    """
    whole_case = (FRAMES_PER_CASE, _RELEASE_1_0_FRAMES)
    return () if len(lengths) == 1 and lengths[0] in whole_case else tuple(lengths)
