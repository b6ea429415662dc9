"""For people: any number of sweep stacks, a folder of results each, and one table."""

import contextlib
import csv
import glob
import io
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from acouslic.errors import AcouslicError
from acouslic.sockets import STACK_SUFFIXES, SWEEP_FOLDER, SweepInput, case_name, find_sweep_input
from acouslic.write import check_writable, write_text
from algorithm.frames.frame_stream import FrameStream
from algorithm.model.manifest import read_manifest
from algorithm.process.messages import complain, explain
from algorithm.process.timing import process_age_s
from algorithm.result.growth import GestationalAge, centile_words, weeks_words
from algorithm.result.outputs import PREVIEW_FILE, CaseResult, prepare_output, removed_on_failure
from algorithm.result.preview import write_preview

if TYPE_CHECKING:
    from algorithm.pipeline import Pipeline

RESULTS_FILE = "results.csv"
_RELEASE_FOLDER = "images/stacked_fetal_ultrasound"


@dataclass(frozen=True)
class ResultRow:
    """One line of `results.csv`; its fields are the columns. Empty cells where there is nothing to say."""

    case: str
    suitable: bool | None = None
    frame_number: int | None = None
    sweep: int | None = None
    presence_probability: float | None = None
    presence_alone_probability: float | None = None
    circumference_mm: float | None = None
    interval_low_mm: float | None = None
    interval_high_mm: float | None = None
    seconds: float | None = None
    gestational_age: str = ""
    centile: float | None = None
    age_by_circumference_weeks: float | None = None
    """Weak, with `age_error_weeks`, two standard deviations."""
    age_error_weeks: float | None = None
    notes: str = ""
    error: str = ""

    def sentence(self) -> str:
        """The line of result that people see."""
        if self.error:
            return f"{self.case}: failed: {self.error}"
        measured = "no circumference"
        if self.circumference_mm is not None:
            interval = f"{self.interval_low_mm:.1f} to {self.interval_high_mm:.1f}"
            measured = f"circumference {self.circumference_mm:.1f} mm ({interval})"
        if self.centile is not None:
            measured += f", {centile_words(self.centile)} at {self.gestational_age}"
        if self.age_by_circumference_weeks is not None:
            suggested = weeks_words(self.age_by_circumference_weeks)
            measured += f", alone it suggests {suggested} (weak: give or take {self.age_error_weeks:.1f} weeks)"
        where = "no frame" if self.sweep is None else f"frame {self.frame_number} (sweep {self.sweep})"
        verdict = "suitable" if self.suitable else "NOT suitable"
        verdict += f": {self.notes}" if self.notes else ""
        return f"{self.case}: {where}, {measured}, {verdict}, {self.seconds:.1f} s"


def predict(
    paths: Sequence[Path],
    output_dir: Path,
    model_dir: Path,
    *,
    device: str | None,
    batch_frames: int | None,
    verbose: bool,
    age: GestationalAge | None = None,
) -> int:
    """Analyse the stacks at `paths` (files or folders) into `output_dir`/<case>/ and `output_dir`/results.csv.

    `age` is the gestational age of all of them, where it is known.

    A case that fails is reported and the next one goes on. Returns 0, or 1 where any case failed; raises
    AcouslicError before anything is analysed where a path holds no stack, two cases have one name, the folder cannot
    be written, or the model cannot be loaded.
    """
    sweeps = find_sweeps(paths)
    rows: list[ResultRow] = []
    read_manifest(model_dir)
    check_writable(output_dir)

    from algorithm.pipeline import Pipeline

    pipeline = Pipeline.load(model_dir, device=device, batch_frames=batch_frames, import_s=process_age_s())
    # Not before: an earlier table stays where the model turns out to be damaged.
    _write_table(output_dir, rows)
    if not verbose:
        logging.getLogger("algorithm.case").setLevel(logging.WARNING)
    with tqdm(
        total=len(sweeps),
        file=sys.stdout,
        disable=not sys.stdout.isatty(),
        bar_format="{percentage:3.0f} %|{bar}| {elapsed} of about {remaining} more",
        leave=False,
    ) as bar:
        for number, (sweep, stream) in enumerate(_read_ahead(sweeps)):
            rows.append(_analyse(pipeline, sweep, stream, output_dir / sweep.case, bar, number, age))
            bar.write(rows[-1].sentence(), file=sys.stdout)
            _write_table(output_dir, rows)
    failed = [row for row in rows if row.error]
    logging.getLogger(__name__).info("%d of %d cases done; see %s", len(rows) - len(failed), len(rows), output_dir)
    if not failed:
        return 0
    for row in failed:
        complain(f"{row.case}: {row.error}")
    names = ", ".join(row.case for row in failed[:20]) + (", ..." if len(failed) > 20 else "")
    complain(f"{len(failed)} of {len(rows)} cases failed, each with its reason in {output_dir / RESULTS_FILE}: {names}")
    return 1


def find_sweeps(paths: Sequence[Path]) -> list[SweepInput]:
    """The stacks that files, folders and patterns stand for, in the order given.

    A folder is one of stacks, of stacks in the raw release's layout, or a case in the platform's layout. Raises
    AcouslicError where there is nothing in one, a stack is given twice, two cases would have the same name, or one
    has a name that no folder can have.
    """
    sweeps = [sweep for path in paths for match in _matches(path) for sweep in _sweeps_at(match)]
    twice = [path for path, count in Counter(sweep.path for sweep in sweeps).items() if count > 1]
    if twice:
        raise AcouslicError(f"{twice[0]} is given twice: name every stack once")
    counts = Counter(sweep.case for sweep in sweeps)
    for case, count in counts.items():
        if count > 1:
            double = ", ".join(str(sweep.path) for sweep in sweeps if sweep.case == case)
            raise AcouslicError(f"{count} stacks would write to the same folder {case!r}: {double}; rename all but one")
        if case in ("", ".", "..", RESULTS_FILE):
            raise AcouslicError(f"a stack's name gives the case name {case!r}, which no folder can have: rename it")
    return sweeps


def _matches(path: Path) -> list[Path]:
    """What a pattern stands for: a shell outside a container cannot expand one that is meant for the inside."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path)))] or [path]  # noqa: PTH207 - absolute patterns too


def _sweeps_at(path: Path) -> list[SweepInput]:
    if not path.exists():
        raise AcouslicError(f"{path} does not exist: give sweep stacks or folders of them")
    if not path.is_dir():
        return [SweepInput(path, case_name(path.name))]
    if (path / SWEEP_FOLDER).is_dir():
        return [find_sweep_input(path)]
    folder = path / _RELEASE_FOLDER if (path / _RELEASE_FOLDER).is_dir() else path
    stacks = sorted(
        item
        for item in folder.iterdir()
        if item.is_file() and item.suffix.lower() in STACK_SUFFIXES and not item.name.startswith(".")
    )
    if not stacks:
        raise AcouslicError(f"{folder} holds no sweep stack ({', '.join(STACK_SUFFIXES)})")
    return [SweepInput(stack, case_name(stack.name)) for stack in stacks]


def _read_ahead(sweeps: Sequence[SweepInput]) -> Iterator[tuple[SweepInput, FrameStream]]:
    """Each sweep with its stream, the next one's decoding already begun."""
    with contextlib.ExitStack() as open_streams:
        ahead = open_streams.enter_context(contextlib.closing(FrameStream(sweeps[0].path)))
        for sweep, following in zip(sweeps, [*sweeps[1:], None], strict=True):
            stream = ahead
            if following is not None:
                ahead = open_streams.enter_context(contextlib.closing(FrameStream(following.path)))
            yield sweep, stream
            stream.close()


def _analyse(
    pipeline: "Pipeline",
    sweep: SweepInput,
    stream: FrameStream,
    case_dir: Path,
    bar: tqdm,
    number: int,
    age: GestationalAge | None,
) -> ResultRow:
    """One case; what goes wrong ends up in its row, and its folder is then without results."""
    start = time.monotonic()

    def show(share: float) -> None:
        bar.update(number + share - bar.n)

    try:
        with removed_on_failure(case_dir):
            prepare_output(case_dir)
            result = pipeline.run_stream(stream, case_dir, sweep.case, age=age, progress=show)
            write_preview(result, case_dir / PREVIEW_FILE)
        return _row(result, time.monotonic() - start)
    except Exception as error:
        with contextlib.suppress(OSError):
            case_dir.rmdir()
        return ResultRow(sweep.case, error=explain(error))


def _row(result: CaseResult, seconds: float) -> ResultRow:
    low_mm, high_mm = result.interval_mm or (None, None)
    in_case, alone = (
        None if result.frame_index is None else round(float(values[result.frame_index]), 6)
        for values in (result.presence_probability, result.presence_alone_probability)
    )
    growth = result.growth
    return ResultRow(
        case=result.case,
        suitable=result.suitable,
        frame_number=result.frame_number,
        sweep=result.sweep_number,
        presence_probability=in_case,
        presence_alone_probability=alone,
        circumference_mm=_tenths(result.circumference_mm),
        interval_low_mm=_tenths(low_mm),
        interval_high_mm=_tenths(high_mm),
        gestational_age="" if growth is None else str(growth.age),
        centile=None if growth is None else _tenths(growth.centile),
        age_by_circumference_weeks=None if growth is None else _tenths(growth.age_by_circumference_weeks),
        age_error_weeks=None if growth is None else _tenths(growth.age_error_weeks),
        seconds=round(seconds, 2),
        notes="; ".join(result.notes),
    )


def _tenths(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _write_table(output_dir: Path, rows: Sequence[ResultRow]) -> None:
    """`results.csv` with what is known so far; True and False in small letters."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = list(ResultRow.__dataclass_fields__)
    table.writerow(columns)
    for row in rows:
        values = [getattr(row, column) for column in columns]
        table.writerow([str(value).lower() if isinstance(value, bool) else value for value in values])
    write_text(output_dir / RESULTS_FILE, text.getvalue())
