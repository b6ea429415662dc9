"""One case from its stack to its files, by a model that is loaded once."""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from acouslic.errors import AcouslicError
from acouslic.stack import StackHeader
from algorithm.engine.batches import Batches, choose_batch_frames
from algorithm.engine.device import Precision, choose_device, choose_precision, keep_exact_sums, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.engine.outline_start import OutlineStart
from algorithm.frames.frame_source import FrameSource
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.frames.seen_field import MOST_UNSEEN, see_field
from algorithm.judgement.recheck import recheck
from algorithm.judgement.review import load_case_head, review_case
from algorithm.judgement.score import FrameScores, score_case
from algorithm.judgement.select_frame import FrameJudgement, choose_candidates, judge_frames
from algorithm.model.artifact import Artifact, load_artifact
from algorithm.model.heads import CaseHead
from algorithm.model.manifest import ScoringConfig
from algorithm.process.memory import is_out_of_memory, keep_freed_memory
from algorithm.process.timing import RunTimings, peak_rss_bytes
from algorithm.result.growth import GestationalAge, judge_growth
from algorithm.result.measure import WORTH_A_NOTE, Outline, outline_best, share_beyond
from algorithm.result.outputs import CaseResult, prepare_output, removed_on_failure, write_result

log = logging.getLogger(__name__)
case_log = logging.getLogger("algorithm.case")
"""What is said of each case, apart, because `predict` says it in a line of its own."""


def _ignore(_: float) -> None:
    """Nobody watches the progress."""


@dataclass(frozen=True)
class Recheck:
    """The members in float32, for the frames that decide something."""

    members: Callable[[], Ensemble]
    """On a CPU they are merged when the first case asks for them; then they stay."""
    margin: float
    """How far from a decision half precision may have moved a logit."""


@dataclass(frozen=True)
class Pipeline:
    """A loaded model, ready for any number of cases, one at a time."""

    ensemble: Ensemble
    batch_frames: int
    import_s: float
    load_s: float
    case_head: CaseHead | None = None
    recheck: Recheck | None = None
    """Where the ensemble computes in half precision and is asked again in float32."""

    @classmethod
    def load(
        cls, model_dir: Path, *, device: str | None = None, batch_frames: int | None = None, import_s: float = 0.0
    ) -> "Pipeline":
        """Load the artifact in `model_dir` on the best device, or on `device` ("cpu" or "cuda"), and say why there.

        `batch_frames` overrides the batch chosen for the device; `import_s` is only handed on to the timings.
        Raises AcouslicError where the artifact is missing, damaged or for another schema, where a GPU that was asked
        for cannot be used, or where its memory does not hold the model.
        """
        start = time.monotonic()
        keep_freed_memory()
        threads, threads_reason = set_cpu_threads()
        keep_exact_sums()
        # Creating a GPU's context takes about as long as reading the weights.
        with ThreadPoolExecutor(max_workers=1) as pool:
            choosing = pool.submit(choose_device, device)
            artifact = load_artifact(model_dir)
            chosen, device_reason = choosing.result()
        precision = choose_precision(chosen, artifact.manifest.half_precision)
        pipeline = cls.of_artifact(artifact, chosen, precision, batch_frames=batch_frames, import_s=import_s)
        pipeline = replace(pipeline, load_s=time.monotonic() - start)
        ensemble = pipeline.ensemble
        log.info("model: %s, %d members, from %s", artifact.manifest.name, ensemble.members, model_dir)
        log.info("device: %s (%s); %d CPU threads (%s)", chosen, device_reason, threads, threads_reason)
        log.info("precision: %s (%s)", str(precision.dtype).removeprefix("torch."), precision.reason)
        at_once = f", together in batches of fewer than {ensemble.batched_below}" if ensemble.batched_below else ""
        log.info("batches of %d frames; members run one after another%s", pipeline.batch_frames, at_once)
        return pipeline

    @classmethod
    def of_artifact(
        cls,
        artifact: Artifact,
        device: torch.device,
        precision: Precision,
        *,
        batch_frames: int | None = None,
        import_s: float = 0.0,
    ) -> "Pipeline":
        """An artifact that is read already, in a precision that is chosen already; see `load`."""
        ensemble = _merge(artifact, device, precision.dtype)
        again = None
        if precision.recheck_margin is not None:
            members = functools.cache(lambda: _merge(_without_gate(artifact), device, torch.float32))
            again = Recheck(members, precision.recheck_margin)
            if device.type == "cuda":
                # So that batches are as large as the memory beside both is.
                members()
        if batch_frames is None:
            batch_frames = choose_batch_frames(artifact.manifest.tower, ensemble.members, device, precision.dtype)
        return cls(ensemble, batch_frames, import_s, 0.0, load_case_head(artifact), again)

    def run(
        self,
        sweep_path: Path,
        output_dir: Path | None,
        case: str,
        *,
        age: GestationalAge | None = None,
        spacing_mm: tuple[float, float] | None = None,
    ) -> CaseResult:
        """Analyse the stack at `sweep_path` and write the result files into `output_dir`; see `run_stream`.

        `spacing_mm` (row, column) stands in place of what the file states, as in `acouslic.stack.open_stack`.
        """
        with contextlib.ExitStack() as until_done:
            if output_dir is not None:
                prepare_output(output_dir)
                until_done.enter_context(removed_on_failure(output_dir))
            stream = until_done.enter_context(contextlib.closing(FrameStream(sweep_path, spacing_mm)))
            return self.run_stream(stream, output_dir, case, age=age)

    def run_stream(
        self,
        stream: FrameSource,
        output_dir: Path | None,
        case: str,
        *,
        age: GestationalAge | None = None,
        started_at: float | None = None,
        progress: Callable[[float], None] = _ignore,
        writing: AbstractContextManager[object] | None = None,
    ) -> CaseResult:
        """Analyse a stack that is being decoded, write its result files and log the timings as one line of JSON.

        `output_dir` has been prepared by `outputs.prepare_output`; None writes nothing. `age` is the pregnancy's, where
        it is known, and gives the circumference its centile. `started_at` (`time.monotonic`) is where `total_s` and
        `first_frame_s` count from, by default now; `progress` gets the share of frames scored; `writing` is entered
        around the writing of files.
        Raises AcouslicError where the stack is damaged or a file cannot be written; no file stays then.
        """
        started_at = time.monotonic() if started_at is None else started_at
        header = stream.header
        case_log.info(
            "case %s: %d frames of %d x %d from %s", case, header.frames, header.rows, header.columns, header.where
        )
        manifest = self.ensemble.manifest
        resized = ResizedFrames(stream, manifest.tower.image_size, manifest.preprocessing, self.ensemble.device)
        scores = score_case(
            self.ensemble,
            resized.frames,
            manifest.scoring,
            batch_frames=self.batch_frames,
            wait_for=resized.fill,
            blank=resized.blank,
            progress=progress,
            sweeps=header.sweeps,
        )
        refined = time.monotonic()
        if self.recheck is not None:
            scores = self._ask_again(self.recheck, scores, header.sweeps, resized)
        scored = time.monotonic()
        result = self._conclude(case, header, resized, scores, age)
        segmented = time.monotonic()
        if output_dir is not None:
            with writing or contextlib.nullcontext():
                write_result(result, output_dir)
        written = time.monotonic()
        timings = RunTimings(
            import_s=self.import_s,
            load_s=self.load_s,
            read_s=stream.read_s,
            wait_s=resized.waited_s,
            preprocess_s=resized.preprocess_s,
            gate_s=scores.gate_s,
            refine_s=scores.refine_s,
            recheck_s=scored - refined,
            segment_s=segmented - scored,
            write_s=written - segmented,
            first_frame_s=scores.first_batch_at - started_at,
            total_s=written - started_at,
            peak_rss_bytes=peak_rss_bytes(),
            peak_device_bytes=_peak_device_bytes(self.ensemble.device),
        )
        self._log(result, scores, timings)
        return result

    def _conclude(
        self,
        case: str,
        header: StackHeader,
        resized: ResizedFrames,
        scores: FrameScores,
        age: GestationalAge | None,
    ) -> CaseResult:
        """Choose, outline and judge the frame of a scored case."""
        manifest = self.ensemble.manifest
        blank = resized.blank()
        judged = self._judge(scores, header.sweeps, blank)
        notes = [*([] if header.spacing_note is None else [header.spacing_note]), *header.notes]
        field = see_field(resized.brightest, manifest.tower)
        notes.extend(field.notes)
        outline = self._outline(resized, header, judged, blank, field.fov, scores.outline_starts)
        # Against the best of its case the best frame always looks good: here it has to stand alone.
        presence = judged.presence_alone[outline.frame_index]
        objections = _objections(outline, presence, manifest.thresholds.suitable, all_black=bool(blank.all()))
        suitable = not objections and field.unseen <= MOST_UNSEEN
        notes.extend(objections)
        if outline.ellipse is not None and (beyond := share_beyond(outline.ellipse, field.fov)) > WORTH_A_NOTE:
            notes.append(
                f"{beyond:.0%} of the ellipse lies beyond the field of view: its circumference is completed from the "
                "part of the outline that is seen"
            )
        if not suitable and manifest.selection.when_unsuitable == "no_frame":
            named, outline = None, Outline(0, np.zeros_like(outline.mask), None, None, None)
        else:
            named = outline.frame_index
        growth = None if age is None else judge_growth(outline.circumference_mm, outline.interval_mm, age)
        if growth is not None:
            notes.extend(growth.notes)
        return CaseResult(
            case=case,
            header=header,
            frame_index=named,
            suitable=suitable,
            mask=outline.mask,
            ellipse=outline.ellipse,
            circumference_mm=outline.circumference_mm,
            interval_mm=outline.interval_mm,
            presence_probability=judged.presence,
            presence_alone_probability=judged.presence_alone,
            optimality_probability=judged.optimality,
            refined=scores.refined,
            thresholds=manifest.thresholds,
            notes=tuple(notes),
            circumference_error=manifest.selection.circumference_error,
            growth=growth,
        )

    def _ask_again(
        self, again: Recheck, scores: FrameScores, sweeps: list[range], resized: ResizedFrames
    ) -> FrameScores:
        """The scores of a case with the frames that decide something in float32."""
        manifest = self.ensemble.manifest
        blank = resized.blank()
        if blank.all():
            return scores
        return recheck(
            scores,
            Batches(again.members(), resized.frames, self.batch_frames, resized.fill),
            lambda known: self._judge(known, sweeps, blank),
            sweeps,
            manifest.selection,
            threshold=manifest.thresholds.presence,
            margin=again.margin,
        )

    def _judge(self, scores: FrameScores, sweeps: list[range], blank: np.ndarray) -> FrameJudgement:
        """The frames in their case. A black frame shows nothing, whatever a network makes of it: 0."""
        presence = np.where(blank, 0.0, scores.presence_probability)
        reviewed = None
        if self.case_head is not None:
            assert scores.member_embedding is not None
            reviewed = review_case(self.case_head, scores.member_presence, scores.member_embedding, sweeps, blank)
        selection = self.ensemble.manifest.selection
        return judge_frames(presence, scores.optimality_probability, sweeps, selection, reviewed)

    def _outline(
        self,
        resized: ResizedFrames,
        header: StackHeader,
        judged: FrameJudgement,
        blank: np.ndarray,
        fov: np.ndarray,
        starts: Mapping[int, OutlineStart],
    ) -> Outline:
        """The best frame that can be outlined; of black frames only, the best guess with an empty mask."""
        selection = self.ensemble.manifest.selection
        sweeps = header.sweeps
        if blank.all():
            (guess,) = choose_candidates(judged.presence, sweeps, 1)
            return Outline(guess, np.zeros((header.rows, header.columns), dtype=bool), None, None, None)
        # A black frame cannot be outlined, even where nothing is above 0.
        candidates = choose_candidates(np.where(blank, -1.0, judged.quality), sweeps, selection.candidates)
        candidates = [index for index in candidates if not blank[index]]
        ensemble = self.ensemble if self.recheck is None else self.recheck.members()
        return outline_best(ensemble, resized.frames, candidates, fov, header.spacing_mm, sweeps, starts, blank=blank)

    def _log(self, result: CaseResult, scores: FrameScores, timings: RunTimings) -> None:
        for note in result.notes:
            case_log.info("note: %s", note)
        case_log.info(
            json.dumps(
                {
                    "event": "case done",
                    "case": result.case,
                    "frames": result.header.frames,
                    "refined_frames": int(result.refined.sum()),
                    "reused_frames": scores.reused,
                    "rechecked_frames": scores.rechecked,
                    "members": self.ensemble.members,
                    "frame_number": result.frame_number,
                    "circumference_mm": result.circumference_mm,
                    "suitable": result.suitable,
                    "device": str(self.ensemble.device),
                    "precision": str(self.ensemble.dtype).removeprefix("torch."),
                    "batch_frames": self.batch_frames,
                    "timings": {name: round(value, 4) for name, value in asdict(timings).items()},
                },
                ensure_ascii=False,
            )
        )


def _objections(outline: Outline, presence: float, least_presence: float, *, all_black: bool) -> list[str]:
    """Why a chosen frame is not suitable, so far as it can be seen from itself; [] where nothing speaks against it.
    `presence` is its probability, in 0..1, which must reach `least_presence`."""
    found = []
    if all_black:
        found.append("all frames are black")
    elif outline.ellipse is None:
        found.append("none of the candidate frames has a mask that an ellipse can be fitted to")
    if presence < least_presence:
        found.append(
            f"the presence probability of the best frame by itself, {presence:.3f}, does not reach {least_presence}"
        )
    return found


def _merge(artifact: Artifact, device: torch.device, dtype: torch.dtype) -> Ensemble:
    """The artifact's members on the device; AcouslicError where its memory does not hold them."""
    try:
        return Ensemble.from_artifact(artifact, device, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise AcouslicError(
            f"the memory of {device} does not hold the model in {artifact.folder}: free some, or use the CPU"
        ) from None


def _without_gate(artifact: Artifact) -> Artifact:
    """An artifact whose members see every frame that they are asked about: no memory goes to a gate."""
    return replace(artifact, manifest=replace(artifact.manifest, scoring=ScoringConfig()))


def _peak_device_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
