"""The figures of `gpu.py`: what was measured on one device, what follows from it, as tables and as JSON."""

from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from algorithm.engine.stacked_tower import RowOrder
from bench.figures.table import number, table
from bench.setting.inputs import RANDOM_REFINED_FRACTION
from bench.setting.machine import today, versions
from bench.setting.sides import SideRun

GOALS = {
    "tower_share_of_peak": ("share of the matrix peak over the tower", 0.55, "at least"),
    "exhaustive_s": ("warm case, exhaustive (s)", 2.5, "at most"),
    "gated_s": ("warm case, gated (s)", 1.0, "at most"),
    "first_frame_s": ("first frames scored in a new process (s)", 12.0, "at most"),
}
"""For an H100-class card: what it is, the bound, and on which side of it to be."""
_PHASES = ("wait", "preprocess", "gate", "refine", "recheck", "segment", "write", "total")


@dataclass(frozen=True)
class TowerRate:
    """The scoring of one batch by all members, nothing but the device's work."""

    order: RowOrder
    batch_frames: int
    ms_a_frame: float
    share_of_peak: float
    """Of the highest rate of plain products in any half type that the device is fast in."""


@dataclass(frozen=True)
class ScoredTower:
    """The tower with all its members on the device."""

    flop_a_frame: int
    """Of all members."""
    batched_below: int
    """Frames of a batch below which the members go through the tower together."""
    one_pass_norm: bool
    """Whether adding and normalising take one pass over memory."""
    batch_frames: int
    """That the algorithm chooses."""
    rates: list[TowerRate]

    @property
    def share_of_peak(self) -> float | None:
        """In batches of the size and the order that the algorithm chooses; None where memory did not hold them."""
        order = "batched" if self.batch_frames < self.batched_below else "sequential"
        for rate in self.rates:
            if (rate.batch_frames, rate.order) == (self.batch_frames, order):
                return rate.share_of_peak
        return None


@dataclass(frozen=True)
class GpuReport:
    """Everything measured on one device."""

    machine: dict[str, Any]
    """With the number of torch's threads."""
    device: str
    precision: str
    model: str
    frames: int
    """Of the case."""
    matrix_peak_flop_per_s: dict[str, float]
    """By type."""
    parity: dict[str, Any]
    """Half precision against float32, as of `parity.summary`."""
    against_cpu: dict[str, Any]
    """Float32 on the device against float32 on the CPU."""
    tower: ScoredTower
    """Whose `share_of_peak` is known."""
    warm: dict[str, list[dict[str, Any]]]
    """By mode the log's account of each run in a loaded process."""
    repeatable: bool
    """Those of each mode came to the same result, to the bit."""
    cold: SideRun
    """In a new process."""
    page_cache_emptied: bool
    """Before that."""
    seconds_in_all: float

    @property
    def holds(self) -> bool:
        """Whether all parity is within bounds and runs are alike, whatever the speed."""
        return bool(self.parity["within_bounds"] and self.against_cpu["within_bounds"] and self.repeatable)

    @cached_property
    def medians_s(self) -> dict[str, dict[str, float]]:
        """Of the warm runs, by mode and phase."""
        return {
            mode: {name: median(run["timings"][f"{name}_s"] for run in runs) for name in _PHASES}
            for mode, runs in self.warm.items()
        }

    @property
    def reached(self) -> dict[str, float]:
        """By goal."""
        assert self.tower.share_of_peak is not None
        return {
            "tower_share_of_peak": self.tower.share_of_peak,
            "exhaustive_s": self.medians_s["exhaustive"]["total"],
            "gated_s": self.medians_s["gated"]["total"],
            "first_frame_s": self.cold.report["timings"]["first_frame_s"],
        }

    def to_json(self) -> dict[str, Any]:
        """One object with every figure."""
        tower, reached = self.tower, self.reached
        return {
            "date": today(),
            "machine": self.machine,
            "versions": versions(),
            "device": self.device,
            "precision": self.precision,
            "model": self.model,
            "frames": self.frames,
            "matrix_peak_flop_per_s": self.matrix_peak_flop_per_s,
            "flop_a_frame": tower.flop_a_frame,
            "parity": self.parity,
            "against_cpu": self.against_cpu,
            "batched_below": tower.batched_below,
            "one_pass_norm": tower.one_pass_norm,
            "batch_frames": tower.batch_frames,
            "tower": [asdict(rate) for rate in tower.rates],
            "warm": {mode: {"phases_s": self.medians_s[mode], "runs": runs} for mode, runs in self.warm.items()},
            "repeatable": self.repeatable,
            "new_process": {
                "wall_s": self.cold.wall_s,
                "page_cache_emptied": self.page_cache_emptied,
                "phases": self.cold.report["timings"],
            },
            "goals": {
                name: {"reached": reached[name], "bound": GOALS[name][1], "met": _met(name, reached)} for name in GOALS
            },
            "seconds_in_all": self.seconds_in_all,
        }

    def text(self) -> str:
        """The tables."""
        lines = [*self._heading(), "", *self._tower_lines(), "", *self._case_lines(), "", self._goal_table()]
        return "\n".join([*lines, f"{self.seconds_in_all:.0f} s in all"])

    def _heading(self) -> list[str]:
        parity, against = self.parity, self.against_cpu
        peaks = ", ".join(f"{name} {rate / 1e12:,.1f}" for name, rate in self.matrix_peak_flop_per_s.items())
        return [
            "",
            f"{self.device}, {self.precision}; {self.model}; {self.frames} frames",
            f"matrix peak measured here: {peaks} TFLOP/s",
            f"{self.tower.flop_a_frame / 1e9:,.1f} GFLOP a frame for all members",
            f"parity with float32: largest difference of a probability {parity['probability_difference']:.4f}, rank "
            f"correlation {parity['rank_correlation']:.5f}: {'within' if parity['within_bounds'] else 'OUTSIDE'} the "
            "bounds",
            f"float32 here and on the CPU: resized frames differ by {against['grey_level_difference']} grey level(s), "
            f"probabilities of {against['frames']} frames by {against['probability_difference']:.1e}: "
            f"{'within' if against['within_bounds'] else 'OUTSIDE'} the bounds",
        ]

    def _tower_lines(self) -> list[str]:
        tower = self.tower
        rows = [
            [rate.order, str(rate.batch_frames), number(rate.ms_a_frame), f"{rate.share_of_peak:.1%}"]
            for rate in tower.rates
        ]
        return [
            table(["tower, members", "batch", "ms a frame", "of the peak"], rows),
            f"chosen: batches of {tower.batch_frames}, batched below {tower.batched_below} frames; "
            f"adding and normalising take {'one pass' if tower.one_pass_norm else 'SEVERAL PASSES'}",
        ]

    def _case_lines(self) -> list[str]:
        medians_s, phases = self.medians_s, self.cold.report["timings"]
        rows = [[f"{name} (s)", *(number(medians_s[mode][name]) for mode in medians_s)] for name in _PHASES]
        cache = "an empty page cache" if self.page_cache_emptied else "a warm page cache"
        return [
            table(["warm case", *medians_s], rows),
            f"runs are {'the same to the bit' if self.repeatable else 'NOT THE SAME'}",
            f"gated: {self.warm['gated'][0]['refined_frames']} of {self.frames} frames refined (capped at "
            f"{RANDOM_REFINED_FRACTION:.0%}, since random weights leave all frames ambiguous)",
            "",
            f"a new process, {cache}: import {number(phases['import_s'])} s, load {number(phases['load_s'])} s, first "
            f"frames scored after {number(phases['first_frame_s'])} s, whole case {number(self.cold.wall_s)} s",
        ]

    def _goal_table(self) -> str:
        reached = self.reached
        rows = [
            [label, number(reached[name]), f"{side} {bound:g}", "yes" if _met(name, reached) else "NO"]
            for name, (label, bound, side) in GOALS.items()
        ]
        return table(["goal for an H100-class card", "reached", "bound", "met"], rows)


def _met(name: str, reached: dict[str, float]) -> bool:
    _, bound, side = GOALS[name]
    return reached[name] >= bound if side == "at least" else reached[name] <= bound
