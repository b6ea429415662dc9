"""For Python programs: a model that is loaded once and analyses sweeps, one at a time.

    from algorithm import Model

    model = Model.load("model/demo")
    result = model.analyse("case.mha")
    print(result.frame_number, result.circumference_mm, result.suitable)

It is the pipeline of `predict`: the same sweep gives the same result.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import GIVEN_SPACING_MM
from algorithm.case_list import find_sweeps
from algorithm.frames.frame_source import ArrayFrames
from algorithm.model.manifest import Manifest
from algorithm.pipeline import Pipeline
from algorithm.result.growth import GestationalAge, parse_age
from algorithm.result.outputs import CaseResult, prepare_output, removed_on_failure


class Model:
    """A model in memory. It analyses one sweep at a time: let several threads take turns."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @classmethod
    def load(cls, model_dir: str | Path, *, device: str | None = None, batch_frames: int | None = None) -> "Model":
        """Load the artifact in the folder `model_dir`.

        `device` is "cpu" or "cuda"; by default a usable GPU, else the CPU. `batch_frames` is how many frames go
        through the network at once; by default as many as suit the device. Sets the number of torch's CPU threads.
        Raises AcouslicError where the artifact is missing or damaged, or the device cannot be used.
        """
        return cls(Pipeline.load(Path(model_dir), device=device, batch_frames=batch_frames))

    @property
    def manifest(self) -> Manifest:
        """What the model is: its tower, members, thresholds and where it comes from."""
        return self._pipeline.ensemble.manifest

    def analyse(
        self,
        sweep: str | Path | NDArray[np.uint8],
        *,
        spacing_mm: tuple[float, float] | None = None,
        case: str | None = None,
        gestational_age: str | None = None,
        output_dir: str | Path | None = None,
    ) -> CaseResult:
        """Choose the best frame of a sweep, outline the abdomen there and measure it.

        `sweep` is a file that `predict` reads, or an array, uint8 (frames, rows, columns). An array has no pixel
        spacing, and neither has a video or PNG: give it as `spacing_mm`, (row, column) in mm from 0.01 to 5, or 0.28 mm
        is assumed and a note says so. It stands in place of what other files state, and a note says where they differ.
        `case` is the name in the result, by default the file's. `gestational_age`, such as "28w3d", adds the
        circumference's centile; as with `predict`, the age that a list of cases gives stands before it. With
        `output_dir` the four files of the result are written there too, in place of earlier ones.
        Raises AcouslicError where the sweep is missing or damaged, the age is none, or a file cannot be written; no
        file stays then.
        """
        folder = None if output_dir is None else Path(output_dir)
        age = None if gestational_age is None else _parsed(gestational_age)
        spacing = None if spacing_mm is None else _checked(spacing_mm)
        if isinstance(sweep, str | Path):
            found = find_sweeps([Path(sweep)])
            if len(found) > 1:
                raise AcouslicError(f"{sweep} holds {len(found)} sweep stacks: give one of them")
            if found[0].gestational_age:
                age = parse_age(found[0].gestational_age)
            return self._pipeline.run(found[0].path, folder, case or found[0].case, age=age, spacing_mm=spacing)
        frames = ArrayFrames(sweep, spacing)
        if folder is None:
            return self._pipeline.run_stream(frames, None, case or "array", age=age)
        prepare_output(folder)
        with removed_on_failure(folder):
            return self._pipeline.run_stream(frames, folder, case or "array", age=age)


def _parsed(gestational_age: object) -> GestationalAge:
    """The age that a program gave, which may be of any type. Raises AcouslicError where it is none."""
    if not isinstance(gestational_age, str):
        raise AcouslicError(f"gestational_age is {gestational_age!r}; expected weeks and days as text, such as '28w3d'")
    return parse_age(gestational_age)


def _checked(spacing_mm: object) -> tuple[float, float]:
    """The (row, column) spacing that somebody gave, which may be of any type. Raises AcouslicError where it is not two
    numbers from 0.01 to 5."""
    try:
        values = [] if isinstance(spacing_mm, str) else [float(value) for value in spacing_mm]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        values = []
    lowest, highest = GIVEN_SPACING_MM
    if len(values) != 2 or not all(lowest <= value <= highest for value in values):
        raise AcouslicError(
            f"spacing_mm is {spacing_mm!r}; expected two numbers from {lowest:g} to {highest:g}, (row, column), in mm"
        )
    return values[0], values[1]
