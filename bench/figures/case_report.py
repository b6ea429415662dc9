"""The figures of `case.py`: what was measured, what follows from it, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from acouslic.geometry import sweep_ranges
from acouslic.stack import StackHeader
from algorithm.judgement.score import gate_frames
from algorithm.model.manifest import Manifest
from bench.figures.flops import CaseFlop, adapted_layers, case_flop, straightforward_flop
from bench.figures.table import number, table
from bench.setting.machine import today, versions, warn_if_busy
from bench.setting.sides import Extrapolated, SideRun, extrapolate

PHASES = (
    *("import_s", "load_s", "read_s", "wait_s", "preprocess_s"),
    *("gate_s", "refine_s", "recheck_s", "segment_s", "write_s"),
)
_A_PHASES = {"refine_s": "score_s"}
"""Side A has no gate: its scoring stands where B refines."""


@dataclass(frozen=True)
class AutocastSide:
    """Side A in half precision."""

    precision: str
    runs: list[SideRun]


@dataclass(frozen=True)
class CaseReport:
    """Everything measured on one case."""

    manifest: Manifest
    model: Path
    random: bool
    """The artifact is `inputs.random_model`."""
    header: StackHeader
    float32: list[SideRun]
    autocast: AutocastSide
    ours: list[SideRun]
    exhaustive: list[SideRun]
    kept: list[SideRun]
    """B on an artifact that keeps the patches inside the fan alone."""
    cold_float32: SideRun | None
    cold_ours: SideRun | None
    agreement: dict[str, Any]
    consequence: dict[str, Any]
    """Of B's precision for its answer, against B in float32."""
    peak_flop_per_s: dict[str, float]
    machine: dict[str, Any]
    _adapted: set[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_adapted", adapted_layers(self.model, self.manifest))

    def a(self, runs: Sequence[SideRun]) -> Extrapolated:
        """Side A on the whole case: of several runs the one with the median time, of two the faster."""
        found = sorted(
            (extrapolate(run, len(self.manifest.members), self.header.frames) for run in runs), key=lambda a: a.total_s
        )
        return found[(len(found) - 1) // 2]

    def b_flop(self, run: SideRun) -> CaseFlop:
        """What B computed in a run. The gate's and the segmented frames follow from the settings."""
        scoring, selection = self.manifest.scoring, self.manifest.selection
        refined, frames = run.report["refined_frames"], self.header.frames
        gated = run.report["timings"]["gate_s"] > 0  # also where the whole ensemble saw every frame after it
        outlined = run.report["circumference_mm"] is not None
        return case_flop(
            self.manifest,
            self._adapted,
            gate_frames=len(gate_frames(sweep_ranges(frames), scoring.stride)) if gated else 0,
            refined_frames=refined,
            reused_frames=run.report["reused_frames"],
            # Every candidate where none has an ellipse; else at least one, and those around it for the interval.
            segmented_frames=1 + 2 * selection.neighbour_frames if outlined else selection.candidates,
        )

    def to_json(self) -> dict[str, Any]:
        """One object with every figure."""
        ours = _median_run(self.ours)
        a_float32, a_autocast = self.a(self.float32), self.a(self.autocast.runs)
        result = {
            "date": today(),
            "machine": self.machine,
            "versions": versions(),
            "device": ours.report["device"],
            "precision": ours.report["precision"],
            "precision_used": ours.report["precision"],
            "gate": self._gate_json(ours),
            "consequence": self.consequence,
            "trained": not self.random,
            "model": self.manifest.name,
            "adapted_layers": len(self._adapted),
            "frames": self.header.frames,
            "mode": self.manifest.scoring.mode,
            **self._ours_json(ours, a_float32),
            "speedup_over_autocast": a_autocast.total_s / ours.wall_s,
            "peak_flop_per_s": self.peak_flop_per_s,
            "selected_frame_agrees": self.agreement["agrees"],
            "selected_frame_agrees_exhaustive": self.agreement["agrees_exhaustive"],
            "agreement": self.agreement,
            "straightforward": {
                "float32": self._a_json(self.float32, a_float32, "float32"),
                "autocast": self._a_json(self.autocast.runs, a_autocast, self.autocast.precision),
            },
        }
        if self.exhaustive:
            result["exhaustive"] = self._exhaustive_json(_median_run(self.exhaustive), a_float32)
        if self.kept:
            result["kept_patches"] = self._kept_json(_median_run(self.kept), a_float32)
        if self.cold_ours is not None and self.cold_float32 is not None:
            first_frame_s = self.cold_ours.report["timings"]["first_frame_s"]
            result["cold"] = _run_json(self.cold_ours, self.a([self.cold_float32])) | {"first_frame_s": first_frame_s}
        return result

    def _ours_json(self, run: SideRun, a_float32: Extrapolated) -> dict[str, Any]:
        """B as it is set up."""
        timings, flop = run.report["timings"], self.b_flop(run)
        return _run_json(run, a_float32) | {
            "refined_frames": run.report["refined_frames"],
            "seconds_per_case_range": [min(each.wall_s for each in self.ours), max(each.wall_s for each in self.ours)],
            "first_frame_s": timings["first_frame_s"],
            "peak_rss_bytes": max(each.report["timings"]["peak_rss_bytes"] for each in self.ours),
            "peak_device_bytes": timings["peak_device_bytes"],
            "flop_per_case": flop.total,
            "flop_by_phase": {"gate": flop.gate, "refine": flop.refine, "segment": flop.segment},
            "share_of_peak": self._share(flop, run),
        }

    def _exhaustive_json(self, run: SideRun, a_float32: Extrapolated) -> dict[str, Any]:
        """B without its gate."""
        flop = self.b_flop(run)
        return _run_json(run, a_float32) | {
            "flop_per_case": flop.total,
            "share_of_peak": self._share(flop, run),
            "peak_rss_bytes": run.report["timings"]["peak_rss_bytes"],
        }

    def _kept_json(self, run: SideRun, a_float32: Extrapolated) -> dict[str, Any]:
        """B on the patches inside the fan alone."""
        return _run_json(run, a_float32) | {
            "time_share": run.wall_s / _median_run(self.ours).wall_s,
            "refined_frames": run.report["refined_frames"],
            "peak_rss_bytes": run.report["timings"]["peak_rss_bytes"],
        }

    def _gate_json(self, run: SideRun) -> dict[str, Any] | None:
        """What chose the frames for the whole ensemble; None where it saw all."""
        scoring = self.manifest.scoring
        if scoring.mode != "gated":
            return None
        return {
            "kind": scoring.gate,
            "stride": scoring.stride,
            "frames": len(gate_frames(sweep_ranges(self.header.frames), scoring.stride)),
            "refined_frames": run.report["refined_frames"],
            "seconds": run.report["timings"]["gate_s"],
            "flop": self.b_flop(run).gate,
            "student": None if self.manifest.student is None else asdict(self.manifest.student),
            "against_exhaustive": self.agreement["gate_against_exhaustive"],
        }

    def text(self) -> str:
        """The table, with what must be known to read it."""
        found = self.to_json()
        a_float32, a_half = self.a(self.float32), self.a(self.autocast.runs)
        ours = [_median_run(self.ours), *([_median_run(self.exhaustive)] if self.exhaustive else [])]
        names = [f"B {self.manifest.scoring.mode}", "B exhaustive"][: len(ours)]
        rows = [
            ["frames run", str(a_float32.measured_frames), str(a_half.measured_frames)]
            + [str(self.header.frames)] * len(ours),
            ["precision", "float32", f"{self.autocast.precision} autocast"]
            + [str(b.report["precision"]) for b in ours],
            ["seconds a case", f"{number(a_float32.total_s)} *", f"{number(a_half.total_s)} *"]
            + [number(b.wall_s) for b in ours],
        ]
        for name in PHASES:
            a_cells = [number(a.phases_s.get(_A_PHASES.get(name, name))) for a in (a_float32, a_half)]
            rows.append([f"  {name.removesuffix('_s')}", *a_cells, *(number(b.report["timings"][name]) for b in ours)])
        first_s = [number(b.report["timings"]["first_frame_s"]) for b in ours]
        memory_gb = [number(b.report["timings"]["peak_rss_bytes"] / 1e9) for b in ours]
        a_memory_gb = [
            number(max(run.report["peak_rss_bytes"] for run in runs) / 1e9)
            for runs in (self.float32, self.autocast.runs)
        ]
        sides = found["straightforward"]
        rows += [
            ["first frames scored after (s)", "-", "-", *first_s],
            ["peak memory (GB)", *(f"{cell} **" for cell in a_memory_gb), *memory_gb],
            ["TFLOP a case", *[number(sides["float32"]["flop_per_case"] / 1e12)] * 2]
            + [number(self.b_flop(b).total / 1e12) for b in ours],
            ["share of matrix peak, scoring", *(_percent(sides[side]["share_of_peak"]) for side in sides)]
            + [_percent(self._share(self.b_flop(b), b)) for b in ours],
            ["A's time over this", "1", number(a_float32.total_s / a_half.total_s)]
            + [number(a_float32.total_s / b.wall_s) for b in ours],
        ]
        return "\n".join([*self._heading(), table(["", "A", "A", *names], rows), *self._notes(found)])

    def _heading(self) -> list[str]:
        machine, scoring = self.machine, self.manifest.scoring
        peaks = ", ".join(f"{value / 1e9:,.0f} GFLOP/s {name}" for name, value in self.peak_flop_per_s.items())
        busy = warn_if_busy(machine["load_before"], machine["cores"])
        gate = ""
        if scoring.mode == "gated":
            gate = (
                f"; gate: {scoring.gate} at a stride of {scoring.stride}, at most "
                f"{scoring.max_refined_fraction:.0%} of the frames refined"
            )
        return [
            *([busy] if busy else []),
            f"{self.manifest.name}, {len(self._adapted)} layers adapted; {self.header.frames} frames of "
            f"{self.header.rows} x {self.header.columns}{gate}",
            f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, matrix peak measured here: {peaks}",
            "",
        ]

    def _notes(self, found: dict[str, Any]) -> list[str]:
        agreement = self.agreement
        frames, ours = agreement["frames"], _median_run(self.ours).report
        lines = [
            "",
            "A: open_clip and peft as one would write it, unmerged adapters. B: this program, median of "
            f"{len(self.ours)} processes. Everything in the page cache.",
            "* EXTRAPOLATED from the frames run: start, loading and outlining once, the rest in proportion.",
            "** on the frames run; a whole case would need more.",
            "Under autocast A's attention takes the sequence first; as open_clip builds it, A would be slower than "
            "in float32 there on a CPU (bench/LOG.md, 22).",
            f"B's whole ensemble saw {ours['refined_frames']} of {ours['frames']} frames, {ours['reused_frames']} of "
            "them from the gate's trunk on. Reading overlaps scoring; what scoring waited for is `wait`; preprocessing "
            "is part of the gate's time.",
            f"On A's {frames} frames, {len(self.manifest.members)} members: largest difference of a probability "
            f"{agreement['float32_probability_difference']:.1e} in float32, "
            f"{agreement['half_probability_difference']:.1e} in {agreement['half_type']} (rank correlation "
            f"{agreement['rank_correlation']:.5f}, spread of the probabilities {agreement['probability_spread']:.3f}); "
            f"of the members' mean optimality {agreement['float32_optimality_difference']:.1e} and "
            f"{agreement['half_optimality_difference']:.1e}; "
            "chosen frame: " + _listed(agreement["selected_frame"]) + "; best candidate before any outline: "
            f"{_listed(agreement['first_candidate'])}; circumference in mm: {_listed(agreement['circumference_mm'])}.",
        ]
        changed = self.consequence
        lines.append(f"What {changed['precision']} does to B's answer there, against float32: {_changes(changed)}.")
        if self.manifest.scoring.mode == "gated":
            gated = agreement["gate_against_exhaustive"]
            lines.append(f"What the gate does to it, against all members on every frame: {_changes(gated)}.")
        if self.random:
            lines.append(
                "The random heads are set to tell the case's frames apart, however alike a random tower finds them, "
                "and magnify its rounding by as much: parity.py on a trained artifact is the measure of half precision."
            )
        if "kept_patches" in found:
            kept = found["kept_patches"]
            lines.append(
                f"On the patches inside the fan alone: B {number(kept['seconds_per_case'])} s, "
                f"{_percent(kept['time_share'])} of its time, with {kept['refined_frames']} frames refined."
            )
        if "cold" in found:
            cold = found["cold"]
            lines.append(
                f"With an empty page cache: B {number(cold['seconds_per_case'])} s, first frames after "
                f"{number(cold['first_frame_s'])} s, {number(cold['speedup'])} times A (extrapolated, cold too)."
            )
        return lines

    def _share(self, flop: CaseFlop, run: SideRun) -> float:
        """Of the matrix peak in the run's precision, over gate and refinement."""
        timings = run.report["timings"]
        scoring_s = timings["gate_s"] + timings["refine_s"]
        return (flop.gate + flop.refine) / scoring_s / self.peak_flop_per_s[run.report["precision"]]

    def _a_json(self, runs: Sequence[SideRun], whole: Extrapolated, precision: str) -> dict[str, Any]:
        rank = _rank(self.model)
        flop = straightforward_flop(self.manifest, self._adapted, rank, self.header.frames)
        return {
            "extrapolated": True,
            "measured_frames": whole.measured_frames,
            "seconds_per_case": whole.total_s,
            "seconds_of_runs": [run.wall_s for run in runs],
            "phases": whole.phases_s,
            "flop_per_case": flop,
            "share_of_peak": flop / whole.phases_s["score_s"] / self.peak_flop_per_s[precision],
            "peak_rss_bytes": max(run.report["peak_rss_bytes"] for run in runs),
        }


def _run_json(run: SideRun, a: Extrapolated) -> dict[str, Any]:
    """What every run of B is asked for, `a` being side A on the same case."""
    return {
        "seconds_per_case": run.wall_s,
        "speedup": a.total_s / run.wall_s,
        "phases": {name: run.report["timings"][name] for name in PHASES},
    }


def _rank(model: Path) -> int:
    return int(json.loads((model / "members" / "0" / "adapter_config.json").read_text())["r"])


def _median_run(runs: Sequence[SideRun]) -> SideRun:
    """Of two the slower."""
    return sorted(runs, key=lambda run: run.wall_s)[len(runs) // 2]


def _changes(changed: dict[str, Any]) -> str:
    frame = "the same frame" if changed["same_frame"] else "another frame"
    return (
        f"{frame}, {changed['frames_called_otherwise']} frames called otherwise, circumference {_difference(changed)}"
    )


def _difference(changed: dict[str, Any]) -> str:
    if changed["one_has_no_circumference"]:
        return "in one of the two alone"
    difference_mm = changed["circumference_difference_mm"]
    return "in neither" if difference_mm is None else f"{difference_mm:.2f} mm apart"


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(f"{who} {f'{value:.1f}' if isinstance(value, float) else value}" for who, value in found.items())


def _percent(share: float) -> str:
    return f"{share:.0%}"
