"""The frames that were judged worst, as one picture: what was called and what was annotated, drawn on what was seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from algorithm.judgement.select_frame import positive_runs
from algorithm.result.preview import BACKGROUND, ELLIPSE, MASK, TEXT, Picture
from training.judge.calibrate import CaseJudgement
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache

COLUMNS = 6
_CAPTION_PX = 40
_GAP_PX = 6
_LEAST_SIDE_PX = 224


@dataclass(frozen=True)
class WorstFrame:
    """The worst frame of one run of frames that were called wrongly."""

    uuid: str
    frame_index: int
    label: int
    presence: float
    """As it is read in its case: positive from 0.5 on."""

    @property
    def error(self) -> float:
        """How far it lies on the wrong side of 0.5, 0 to 0.5."""
        return abs(self.presence - 0.5)

    def caption(self) -> tuple[str, str]:
        """Two lines: where it is, and what was thought of it."""
        label = ("no label", "optimal", "suboptimal")[self.label]
        return f"{self.uuid[:8]}  frame {self.frame_index}", f"{label}, read {self.presence:.2f}"


def find_worst_frames(cases: Sequence[CaseJudgement], cache: Cache, count: int) -> list[WorstFrame]:
    """At most `count` frames, the worst first: half of them called without a label, half with a label and not called,
    or more of the one where the other has fewer. A run of wrong frames in a sweep gives its worst one alone."""
    called: list[WorstFrame] = []
    missed: list[WorstFrame] = []
    for case in cases:
        presence, labelled = case.frames.presence, case.label > 0
        for wrong, found in ((~labelled & (presence >= 0.5), called), (labelled & (presence < 0.5), missed)):
            for sweep in cache.case(case.uuid).sweeps:
                for run in positive_runs(wrong, sweep):
                    worst = run.start + int(np.argmax(np.abs(presence[run.start : run.stop] - 0.5)))
                    found.append(WorstFrame(case.uuid, worst, int(case.label[worst]), float(presence[worst])))
    for found in (called, missed):
        found.sort(key=lambda frame: (-frame.error, frame.uuid, frame.frame_index))
    of_called = min(len(called), max(count - count // 2, count - len(missed)))
    chosen = called[:of_called] + missed[: count - of_called]
    return sorted(chosen, key=lambda frame: (-frame.error, frame.uuid, frame.frame_index))


def draw_worst_frames(frames: Sequence[WorstFrame], cache: Cache, scored: Sequence[OutOfFold]) -> Picture:
    """The frames as the network saw them, in rows of `COLUMNS`: the annotation in green, in orange what a member that
    did not learn from it drew, where it drew anything. Without frames one line that says so."""
    if not frames:
        picture = np.full((_CAPTION_PX + 2 * _GAP_PX, COLUMNS * _LEAST_SIDE_PX // 2, 3), BACKGROUND, np.uint8)
        _write(picture, "No frame was called wrongly.", _GAP_PX, _GAP_PX + 16)
        return picture
    drawn = dict(_drawn_masks(scored))
    tiles = [_draw(frame, cache, drawn.get((frame.uuid, frame.frame_index))) for frame in frames]
    height, width, _ = tiles[0].shape
    rows = -(-len(tiles) // COLUMNS)
    shape = (_GAP_PX + rows * (height + _GAP_PX), _GAP_PX + min(COLUMNS, len(tiles)) * (width + _GAP_PX), 3)
    picture = np.full(shape, BACKGROUND, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        top, left = _GAP_PX + row * (height + _GAP_PX), _GAP_PX + column * (width + _GAP_PX)
        picture[top : top + height, left : left + width] = tile
    return picture


def _drawn_masks(scored: Sequence[OutOfFold]) -> Iterator[tuple[tuple[str, int], NDArray[np.uint8]]]:
    """Masks (G, G), 0..255, by uuid and frame; of several members' the last."""
    for member in scored:
        yield from zip(member.mask_places(), member.mask_probability, strict=True)


def _draw(frame: WorstFrame, cache: Cache, drawn: NDArray[np.uint8] | None) -> Picture:
    case = cache.case(frame.uuid)
    side = max(_LEAST_SIDE_PX, cache.image_size)
    seen = cv2.resize(np.array(case.frames[frame.frame_index]), (side, side), interpolation=cv2.INTER_CUBIC)
    tile = np.full((side + _CAPTION_PX, side, 3), BACKGROUND, np.uint8)
    tile[:side] = cv2.cvtColor(seen, cv2.COLOR_GRAY2BGR)
    outlines = [(drawn, ELLIPSE)] if drawn is not None else []
    if frame.label:
        outlines.append(((case.mask(frame.frame_index) > 0).astype(np.uint8) * 255, MASK))
    for mask, colour in outlines:
        inside = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR) > 127
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, colour, 1, cv2.LINE_AA)
    for line, text in enumerate(frame.caption()):
        _write(tile, text, 2, side + 15 + 17 * line)
    return tile


def _write(picture: Picture, text: str, left: int, bottom: int) -> None:
    cv2.putText(picture, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.42, TEXT, 1, cv2.LINE_AA)
