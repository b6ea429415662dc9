"""For people: any number of sweep stacks, a folder of results each, and one table."""

import contextlib
import functools
import importlib.util
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acouslic.errors import AcouslicError
from acouslic.interrupts import Interrupts
from acouslic.paths import sees_file, sees_folder
from acouslic.sockets import SweepInput
from acouslic.write import check_writable
from algorithm.case_list import check_apart, find_sweeps
from algorithm.frames.frame_stream import FrameStream
from algorithm.model.file_hashes import begin_hashing
from algorithm.page.case_page import write_case_page
from algorithm.page.cohort_page import write_index
from algorithm.process.collector import uncollected
from algorithm.process.devices import visible_gpus
from algorithm.process.messages import complain, explain
from algorithm.process.progress import Progress
from algorithm.process.timing import process_age_s
from algorithm.result.case_folder import complete_or_absent, remove_leftovers
from algorithm.result.dicom_objects import check_source, write_dicom
from algorithm.result.growth import GestationalAge, parse_age
from algorithm.result.outputs import PREVIEW_FILE, REPORT_FILE, prepare_output
from algorithm.result.preview import write_preview
from algorithm.result.record import Maker, recorded_row, write_record
from algorithm.result.source import is_there, source_of, without_name
from algorithm.result.table import INDEX_FILE, RESULTS_FILE, ResultRow, ResultTable

if TYPE_CHECKING:
    from algorithm.pipeline import Pipeline

_ENDING_S = 10.0
"""How long a process that was killed may take to give up its files."""

log = logging.getLogger(__name__)


def _nobody_watches(_: float) -> None:
    """No progress is shown."""


def _nobody_asks(_: Exception) -> None:
    """Nobody needs to know more of a failure than its sentence."""


def _nothing() -> None:
    """Nothing is to be done before a result lands."""


class CaseStream(FrameStream):
    """The frames of a case, whose decoding begins at once, and what its files were before they were opened."""

    def __init__(self, path: Path, spacing_mm: tuple[float, float] | None = None) -> None:
        self.source = source_of(path)
        super().__init__(path, spacing_mm)


@dataclass(frozen=True)
class PredictSettings:
    """What `predict` is asked for, beside its cases."""

    output_dir: Path
    """Gets a folder a case, and the table."""
    model_dir: Path
    device: str | None = None
    batch_frames: int | None = None
    verbose: bool = False
    age: GestationalAge | None = None
    """Of the pregnancy, where it is known, for all cases that a list gives no age of their own."""
    spacing_mm: float | None = None
    """Size of a pixel, in place of what the files state."""
    dicom: bool = False
    """Write DICOM objects that refer to the source; a case that is no DICOM fails then."""
    page: bool = True
    """Write a page for each case, and one for all."""
    resume: bool = False
    """Skip what is complete and was made of the same file by the same model and version."""
    num_parts: int = 1
    part_id: int = 0
    """Of the cases only every `num_parts`-th, from this one."""
    workers: int | None = None
    """Actors that each load the model; None is one a GPU, without GPUs one a machine."""
    ray_address: str | None = None
    """Of a cluster to join; without one, a Ray of this machine alone is started where it is needed."""

    @property
    def table_path(self) -> Path:
        """Each part has a table of its own: they run at once."""
        return self._of_part(RESULTS_FILE)

    @property
    def index_path(self) -> Path:
        """The page of all cases; each part has one of its own, too."""
        return self._of_part(INDEX_FILE)

    def _of_part(self, name: str) -> Path:
        path = self.output_dir / name
        return path if self.num_parts == 1 else path.with_stem(f"{path.stem}.part-{self.part_id}-of-{self.num_parts}")

    def age_of(self, sweep: SweepInput) -> GestationalAge | None:
        """The age of one case: what a list says of it, else what is said of all."""
        return parse_age(sweep.gestational_age) if sweep.gestational_age else self.age

    def maker(self) -> Maker:
        """What makes the results; raises AcouslicError where there is no model."""
        settings = {"gestational_age": None if self.age is None else str(self.age), "dicom": self.dicom}
        return Maker.of(self.model_dir, settings | {"spacing_mm": self.spacing_mm})

    def stream(self, sweep: SweepInput) -> CaseStream:
        """The frames of a case."""
        return CaseStream(sweep.path, None if self.spacing_mm is None else (self.spacing_mm, self.spacing_mm))


def predict(paths: Sequence[Path], settings: PredictSettings, interrupts: Interrupts) -> int:
    """Analyse the stacks at `paths` (files, folders, patterns) into a folder a case and a table.

    A case that fails is reported and the next one goes on. Returns 0, or 1 where any case failed; raises
    AcouslicError before anything is analysed where a path holds no stack, two cases have one name, results would go
    into a sweep's own folder or be read as cases by the next run, the output folder cannot be written, or the model
    cannot be loaded.
    """
    sweeps = find_sweeps(paths)[settings.part_id :: settings.num_parts]
    for sweep in sweeps:
        check_apart(sweep, settings.output_dir)
    _check_not_read_again(paths, sweeps, settings.output_dir)
    maker = settings.maker()
    check_writable(settings.output_dir)
    table = ResultTable(settings.table_path, [sweep.case for sweep in sweeps])
    waiting = list(sweeps)
    if settings.resume:
        waiting = _not_yet_done(sweeps, settings, maker, table)
        log.info("%d of %d cases are complete and are skipped", len(sweeps) - len(waiting), len(sweeps))
        # They are hours of work, perhaps: that they lack a page is said, and is no reason to do them again.
        pageless = sum(not sees_file(settings.output_dir / row.case / REPORT_FILE) for row in table.rows)
        if pageless and settings.page:
            log.info("%d of them have no page, as after --no-page: for one, do them again without --resume", pageless)
    if not settings.verbose:
        logging.getLogger("algorithm.case").setLevel(logging.WARNING)
    many = _asks_for_many(settings)
    try:
        if waiting and many:
            _on_many_devices(waiting, settings, maker, table, interrupts)
        elif waiting:
            _one_after_another(waiting, settings, maker, table, interrupts)
        with interrupts.held():
            table.remove_earlier(settings.index_path)
            table.write()
            if settings.page:
                write_index(settings.index_path, table.rows, table.path.name)
            if many:
                table.write_parquet()
            interrupts.end()
    except KeyboardInterrupt:
        if many:
            # What workers completed while the driver was being stopped.
            _not_yet_done(waiting, settings, maker, table)
        done = sum(not row.error for row in table.rows)
        interrupts.kept = f"{done} of {len(sweeps)} cases are complete in {settings.output_dir}, --resume does the rest"
        # An earlier table stays as long as nothing has begun: it also tells of cases that failed.
        if table.has_begun or not table.path.exists():
            table.write()
        raise
    return _conclude(table, settings.output_dir)


def analyse_case(
    pipeline: "Pipeline",
    sweep: SweepInput,
    stream: CaseStream,
    settings: PredictSettings,
    maker: Maker,
    *,
    interrupts: Interrupts | None = None,
    progress: Callable[[float], None] = _nobody_watches,
    before_landing: Callable[[], object] = _nothing,
    on_failure: Callable[[Exception], object] = _nobody_asks,
) -> ResultRow:
    """Analyse one case into `settings.output_dir`/<case>/, whole or not at all. What goes wrong ends up in its row.

    `progress` gets the share of frames scored; `before_landing` is called when everything is written, before the
    folder takes its name; `on_failure` gets what went wrong. A signal that `interrupts` noted is a KeyboardInterrupt
    and no failure of the case.
    """
    try:
        return _try_case(pipeline, sweep, stream, settings, maker, progress, before_landing)
    except Exception as error:
        if interrupts is not None:
            interrupts.raise_noted()
        on_failure(error)
        return ResultRow(sweep.case, error=without_name(explain(error), sweep.path, stream.source, sweep.case))


def _try_case(
    pipeline: "Pipeline",
    sweep: SweepInput,
    stream: CaseStream,
    settings: PredictSettings,
    maker: Maker,
    progress: Callable[[float], None],
    before_landing: Callable[[], object],
) -> ResultRow:
    start = time.monotonic()
    with complete_or_absent(settings.output_dir / sweep.case, before_landing=before_landing) as folder:
        prepare_output(folder)
        if settings.dicom:
            check_source(stream.header)
        result = pipeline.run_stream(stream, folder, sweep.case, age=settings.age_of(sweep), progress=progress)
        # Whoever writes the page has read the stack once more: the preview need not.
        frame = write_case_page(result, folder) if settings.page else None
        write_preview(result, folder / PREVIEW_FILE, frame)
        if settings.dicom:
            write_dicom(result, folder, maker)
        if is_there(sweep.path) and source_of(sweep.path) != stream.source:
            # Page and preview would show other frames than were judged.
            raise AcouslicError(f"{sweep.path} was changed while it was analysed: analyse it again")
        row = ResultRow.of(result, time.monotonic() - start)
        write_record(folder, stream.source, maker, row)
    return row


def row_of_done(sweep: SweepInput, settings: PredictSettings, maker: Maker) -> ResultRow | None:
    """The row of a case whose complete result is what `maker` would make of it now, at the age that it has now; else
    None."""
    row = recorded_row(settings.output_dir / sweep.case, sweep.path, maker)
    is_done = row is not None and row.gestational_age == str(settings.age_of(sweep) or "")
    return row if is_done else None


def _check_not_read_again(paths: Sequence[Path], sweeps: Sequence[SweepInput], output_dir: Path) -> None:
    """Raises AcouslicError where one of `paths` is the output folder and each folder in it is read as a case: the next
    run would read those of the results, whose pictures are taken for frames."""
    with contextlib.suppress(OSError):  # Where the output folder is not there yet, it is another one.
        if not any(output_dir.samefile(path) for path in paths if sees_folder(path)):
            return
        for sweep in sweeps:
            folder = sweep.path if sees_folder(sweep.path) else sweep.path.parent
            if output_dir.samefile(folder.parent):
                raise AcouslicError(
                    f"the results would go into {output_dir}, each folder of which is read as a case, and the next run "
                    "would read them too: name another output folder"
                )


def _not_yet_done(
    sweeps: Sequence[SweepInput], settings: PredictSettings, maker: Maker, table: ResultTable
) -> list[SweepInput]:
    """The cases that are to be analysed; the rows of the others go into the table."""
    waiting = []
    for sweep in sweeps:
        row = row_of_done(sweep, settings, maker)
        if row is None:
            waiting.append(sweep)
        else:
            table.take(row)
    return waiting


def _one_after_another(
    sweeps: Sequence[SweepInput], settings: PredictSettings, maker: Maker, table: ResultTable, interrupts: Interrupts
) -> None:
    """On one device, in this process."""
    begin_hashing(settings.model_dir)
    with interrupts.held(), uncollected():
        from algorithm.pipeline import Pipeline

    pipeline = Pipeline.load(
        settings.model_dir,
        device=settings.device,
        batch_frames=settings.batch_frames,
        import_s=process_age_s(),
    )
    # Not before: an earlier table stays where the model turns out to be damaged.
    table.remove_earlier(settings.index_path)
    table.write()
    remove_leftovers(settings.output_dir, [sweep.case for sweep in sweeps])
    with Progress(len(sweeps)) as progress:
        for sweep, stream in _read_ahead(sweeps, settings):
            with contextlib.ExitStack() as landing:
                row = analyse_case(
                    pipeline,
                    sweep,
                    stream,
                    settings,
                    maker,
                    interrupts=interrupts,
                    progress=progress.share,
                    # No signal comes between a result and its row.
                    before_landing=functools.partial(landing.enter_context, interrupts.held()),
                )
                table.add(row)
            progress.end_case(row.sentence())


def _asks_for_many(settings: PredictSettings) -> bool:
    """Whether Ray is to be used: it was asked for, or there are several GPUs and it is installed."""
    if settings.ray_address is not None or settings.workers is not None:
        return settings.ray_address is not None or settings.workers != 1
    gpus = 0 if settings.device == "cpu" else visible_gpus()
    if gpus > 1 and importlib.util.find_spec("ray") is None:
        log.info("one of %d GPUs is used: for all of them install Ray (requirements/set_up.sh cohort)", gpus)
        return False
    return gpus > 1


def _on_many_devices(
    sweeps: Sequence[SweepInput], settings: PredictSettings, maker: Maker, table: ResultTable, interrupts: Interrupts
) -> None:
    """By Ray, each case on whatever worker is free."""
    with interrupts.held():
        from algorithm.cohort import analyse_cohort

    cases = [sweep.case for sweep in sweeps]

    with Progress(len(sweeps)) as progress:

        def begin() -> None:
            table.remove_earlier(settings.index_path)
            table.write()
            remove_leftovers(settings.output_dir, cases)
            progress.start()

        def take(row: ResultRow) -> None:
            table.add(row)
            progress.end_case(row.sentence())

        try:
            # Ray's own words are for the log.
            with contextlib.redirect_stderr(sys.stdout):
                analyse_cohort(sweeps, settings, maker, interrupts, begin=begin, take=take)
        finally:
            # Of workers that were killed, perhaps only just.
            remove_leftovers(settings.output_dir, cases, patience_s=_ENDING_S)


def _read_ahead(sweeps: Sequence[SweepInput], settings: PredictSettings) -> Iterator[tuple[SweepInput, CaseStream]]:
    """Each sweep with its stream, the next one's decoding already begun."""
    streams: deque[CaseStream] = deque()
    try:
        streams.append(settings.stream(sweeps[0]))
        for sweep, following in zip(sweeps, [*sweeps[1:], None], strict=True):
            if following is not None:
                streams.append(settings.stream(following))
            yield sweep, streams[0]
            streams[0].close()
            streams.popleft()
    finally:
        for stream in streams:
            stream.close()


def _conclude(table: ResultTable, output_dir: Path) -> int:
    """Say what was done and what failed; the exit code."""
    rows = table.rows
    failed = [row for row in rows if row.error]
    log.info("%d of %d cases done; see %s", len(rows) - len(failed), len(rows), output_dir)
    if not failed:
        return 0
    for row in failed:
        complain(f"{row.case}: {row.error}")
    names = ", ".join(row.case for row in failed[:20]) + (", ..." if len(failed) > 20 else "")
    complain(f"{len(failed)} of {len(rows)} cases failed, each with its reason in {table.path}: {names}")
    return 1
