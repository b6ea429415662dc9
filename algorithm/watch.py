"""A folder that is watched: each new stack in it is analysed once, also when the program is started again.

What is done is known by the results themselves: a case's own record, or a record of its failure in `.failed/`. A file
that changes later is a new one.
"""

import contextlib
import dataclasses
import functools
import glob
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from acouslic.errors import AcouslicError, ShortageError
from acouslic.interrupts import Interrupts
from acouslic.paths import sees_file, sees_folder
from acouslic.scanner.dicom_header import is_dicom
from acouslic.sockets import FRAME_NUMBER_FILE, SweepInput
from acouslic.write import check_writable
from algorithm.case_list import check_apart, check_case_name, stacks_in_folder, sweep_of_file
from algorithm.predict import PredictSettings, analyse_case
from algorithm.process.collector import uncollected
from algorithm.process.messages import complain, explain, is_for_now
from algorithm.process.timing import process_age_s
from algorithm.result.case_folder import remove_leftovers
from algorithm.result.outputs import RECORD_FILE
from algorithm.result.record import Maker, failed_row, recorded_row, rows_of_complete, rows_of_failed, write_record
from algorithm.result.source import Stamp, source_files, stamp_of
from algorithm.result.table import RESULTS_FILE, ResultRow, ResultTable

if TYPE_CHECKING:
    from algorithm.pipeline import Pipeline

FAILED_FOLDER = ".failed"
RETRY_S = 600.0
"""After a failure that was the machine's and not the file's."""
HEARTBEAT_FILE = ".watching"
"""In the output folder; its time says when the watcher was last alive."""

_BEAT_S = 1.0
"""At most so often while it works."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """When to look, and when a file counts as complete."""

    every_s: float = 2.0
    settled_s: float = 5.0
    """Neither it nor a file that belongs to it (the pixels of a `.mhd`) was written for so long."""


def watch(input_dir: Path, settings: PredictSettings, rhythm: Rhythm, interrupts: Interrupts) -> int:
    """Analyse what lies in `input_dir` and whatever comes, until a signal ends the program; then 0.

    Raises AcouslicError where there is no such folder, the output folder cannot be written, or the model cannot be
    loaded. A case that fails is told on stderr and tried again only when a file of it changes, or, where memory or a
    disk was short, some minutes later and by the next watcher.
    """
    if not sees_folder(input_dir):
        raise AcouslicError(f"{input_dir} is no folder: name the one that new stacks come into")
    maker = settings.maker()
    check_writable(settings.output_dir)
    if not settings.verbose:
        logging.getLogger("algorithm.case").setLevel(logging.WARNING)
    with interrupts.held(), uncollected():
        from algorithm.pipeline import Pipeline

    pipeline = Pipeline.load(
        settings.model_dir, device=settings.device, batch_frames=settings.batch_frames, import_s=process_age_s()
    )
    log.info("watching %s; results go to %s", input_dir, settings.output_dir)
    try:
        _Watcher(input_dir, settings, maker, pipeline, interrupts).run(rhythm)
    except KeyboardInterrupt:
        interrupts.end()
        log.info("stopped; what is not done yet is done at the next start")
    return 0


def check_heartbeat(output_dir: Path, longest_s: float) -> None:
    """Raises AcouslicError unless a watcher of this output folder was alive within the last `longest_s`."""
    path = output_dir / HEARTBEAT_FILE
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError as error:
        raise AcouslicError(
            f"{path}: {error.strerror}: no watcher has written there: name the OUT of `acouslic watch`, or start it"
        ) from None
    if age_s < -longest_s:
        raise AcouslicError(
            f"{path} is dated {-age_s:.0f} s ahead, which is no sign of life: remove it, and set the clocks right"
        )
    if age_s > longest_s:
        raise AcouslicError(f"{path} is {age_s:.0f} s old: the watcher does not answer any more")


class _Watcher:
    def __init__(
        self, input_dir: Path, settings: PredictSettings, maker: Maker, pipeline: "Pipeline", interrupts: Interrupts
    ) -> None:
        self._input_dir, self._settings, self._maker = input_dir, settings, maker
        self._pipeline, self._interrupts = pipeline, interrupts
        self._table = ResultTable(settings.table_path, [])
        self._told: dict[Path, Stamp | None] = {}
        """Files that were refused, as of when: another one may come under the same name."""
        self._seen: dict[Path, tuple[list[Stamp | None], float]] = {}
        """Young files, each as it was last, and since when it is so: clocks may differ, and a file's may be ahead."""
        self._named: dict[Path, tuple[Stamp | None, SweepInput, list[Path]]] = {}
        """The case that a file is and all files that belong to it, as of when, so that no header is read again
        unchanged."""
        self._belonging: set[Path] = set()
        """The other files of these cases, and the folders that they lie in."""
        self._known: dict[str, tuple[list[Stamp | None], ResultRow | None]] = {}
        """By case: the row that its records have, and as of which files, so that none is read again unchanged."""
        self._put_off: dict[str, tuple[list[Stamp | None], float]] = {}
        """By case: as of which files it failed for the machine's sake, and from when on it is tried again."""
        self._trouble = ""
        """Why the table could not be written, the last time; empty where it could."""
        self._beaten_s = 0.0
        """When the sign of life was last renewed, by the monotonic clock."""

    def begin(self) -> None:
        """Take the rows of what is complete or failed already, also of stacks that have left the folder since."""
        self._table.remove_earlier(self._settings.index_path)
        output_dir = self._settings.output_dir
        # A case that has both was done by somebody else after it had failed here.
        rows = [*rows_of_failed(output_dir / FAILED_FOLDER), *rows_of_complete(output_dir)]
        for row in rows:
            self._table.take(row)
        if rows:
            self._write_table()

    def run(self, rhythm: Rhythm) -> None:
        """Until a signal."""
        self.begin()
        while True:
            self._beat()
            for sweep in self._new(rhythm.settled_s):
                self._analyse(sweep)
                self._beat()
            time.sleep(rhythm.every_s)

    def _beat(self) -> None:
        """The sign of life. Raises AcouslicError where the output folder is gone: what is not mounted any more must not
        be made again beneath."""
        output_dir = self._settings.output_dir
        self._beaten_s = time.monotonic()
        try:
            (output_dir / HEARTBEAT_FILE).touch()
        except FileNotFoundError:
            raise AcouslicError(
                f"{output_dir} was removed while the watcher ran: mount or make it again, and start the watcher again"
            ) from None
        except OSError as error:  # A full disk may have room later; until then `health` says that the sign is old.
            log.warning("%s could not be written: %s", output_dir / HEARTBEAT_FILE, error.strerror or error)

    def _beat_meanwhile(self, _: float = 0.0) -> None:
        """In the middle of a look, or of a case, whose results say themselves that they have no folder."""
        if time.monotonic() - self._beaten_s >= _BEAT_S:
            with contextlib.suppress(AcouslicError):
                self._beat()

    def _new(self, settled_s: float) -> Iterator[SweepInput]:
        """What is complete and not done; the rows of what is done go into the table."""
        taken: dict[str, Path] = {}
        has_found = False
        stacks, others = self._items()
        for path in stacks:
            self._beat_meanwhile()  # A look at very many files takes longer than a watcher may be silent.
            sweep = self._sweep_of(path, settled_s)
            if sweep is None:
                continue
            if taken.setdefault(sweep.case, sweep.path) != sweep.path:
                sentence = f"{path} is not analysed: {taken[sweep.case]} has the same case name, {sweep.case}"
                if is_dicom(path) or is_dicom(taken[sweep.case]):  # Their names may be patients'.
                    sentence = f"{self._input_dir} holds several files that are DICOM {sweep.case}: keep one of them"
                self._tell(path, sentence)
                continue
            with contextlib.suppress(OSError, AcouslicError):  # Gone, or out of reach just now.
                row = self._row_of(sweep)
                if row is None:
                    if self._is_settled(self._files_of(sweep), settled_s) and not self._is_put_off(sweep):
                        yield sweep
                elif not self._table.holds(row):
                    self._table.take(row)
                    has_found = True
        if has_found or self._trouble:  # once, however many a watcher that starts again finds done
            self._write_table()
        self._tell_of_strays(others, settled_s)

    def _items(self) -> tuple[list[Path], set[Path]]:
        """What lies in the folder, hidden items apart: the files that are a stack each, by their suffix or as DICOM,
        whatever they are called; and all others. Raises AcouslicError where the folder cannot be read."""
        try:
            stacks = set(stacks_in_folder(self._input_dir))
            others = {item for item in self._input_dir.iterdir() if not item.name.startswith(".")} - stacks
        except (AcouslicError, OSError) as error:
            raise AcouslicError(
                f"the watched folder is gone or out of reach ({error}): mount it or make it again, and start the "
                "watcher again"
            ) from None
        nameless = {
            item
            for item in others
            if sees_file(item) and (item in self._named or (self._is_stray(item) and _is_nameless_dicom(item)))
        }
        return sorted(stacks | nameless), others - nameless

    def _is_stray(self, item: Path) -> bool:
        """Whether something that is no stack by its suffix belongs to none, and was not told of yet."""
        was_told = item in self._told and (self._told[item] == stamp_of(item) or sees_folder(item))
        return item not in self._belonging and not was_told

    def _tell_of_strays(self, items: set[Path], settled_s: float) -> None:
        for item in sorted(filter(self._is_stray, items)):
            with contextlib.suppress(OSError):  # Gone, or a link that leads nowhere.
                if self._is_settled([item], settled_s) and not self._is_ours(item):
                    # The name of a folder of DICOM files may be a patient's.
                    what = f"a folder in {self._input_dir}" if sees_folder(item) else str(item)
                    self._tell(
                        item,
                        f"{what} is not analysed: a watcher takes each sweep stack and each DICOM file, and leaves "
                        "folders, pictures and lists to `acouslic predict`",
                    )

    def _is_ours(self, item: Path) -> bool:
        """Whether it is the output folder or, where that is the watched one, what a watcher writes. Raises OSError
        where one is gone or out of reach."""
        output_dir = self._settings.output_dir
        is_result = item.name == RESULTS_FILE or sees_file(item / RECORD_FILE)
        return output_dir.samefile(item) or (is_result and output_dir.samefile(item.parent))

    def _sweep_of(self, path: Path, settled_s: float) -> SweepInput | None:
        """The case that a file is. None where it is none, which is told when the file is complete."""
        stamp = stamp_of(path)
        known = self._named.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            sweep = sweep_of_file(path)
            check_case_name(sweep.case)
            check_apart(sweep, self._settings.output_dir)
        except AcouslicError as error:
            with contextlib.suppress(OSError):
                if self._is_settled([path], settled_s):
                    self._tell(path, str(error))
            return None
        files = source_files(path)
        self._named[path] = stamp, sweep, files
        self._belonging.update(item for file in files[1:] for item in (file, file.parent))
        return sweep

    def _files_of(self, sweep: SweepInput) -> list[Path]:
        return self._named[sweep.path][2]

    def _tell(self, path: Path, sentence: str) -> None:
        """Once a file, and again when it has changed."""
        stamp = stamp_of(path)
        if path not in self._told or self._told[path] != stamp:
            self._told[path] = stamp
            complain(sentence)

    def _is_settled(self, files: list[Path], settled_s: float) -> bool:
        """Whether nobody has written to the files for so long, by their times or by what earlier looks saw. Raises
        OSError where the first is gone or out of reach."""
        if _age_s(files) >= settled_s:
            self._seen.pop(files[0], None)
            return True
        stamps = [stamp_of(file) for file in files]
        seen = self._seen.get(files[0])
        if seen is None or seen[0] != stamps:
            self._seen[files[0]] = seen = stamps, time.monotonic()
        return time.monotonic() - seen[1] >= settled_s

    def _row_of(self, sweep: SweepInput) -> ResultRow | None:
        case_dir, failed_dir = (self._settings.output_dir / part / sweep.case for part in ("", FAILED_FOLDER))
        records = case_dir / FRAME_NUMBER_FILE, case_dir / RECORD_FILE, failed_dir / RECORD_FILE
        stamps = [stamp_of(path) for path in (*self._files_of(sweep), *records)]
        known = self._known.get(sweep.case)
        if known is None or known[0] != stamps:
            row = recorded_row(case_dir, sweep.path, self._maker) or failed_row(failed_dir, sweep.path, self._maker)
            self._known[sweep.case] = known = stamps, row
        return known[1]

    def _is_put_off(self, sweep: SweepInput) -> bool:
        stamps, until = self._put_off.get(sweep.case, ([], 0.0))
        return time.monotonic() < until and stamps == [stamp_of(path) for path in self._files_of(sweep)]

    def _write_table(self) -> None:
        """A disk that is full now may have room later: the trouble is told once, and the next look tries again."""
        try:
            self._table.write()
            self._trouble = ""
        except ShortageError as error:
            if self._trouble != str(error):
                complain(str(error))
            self._trouble = str(error)

    def _analyse(self, sweep: SweepInput) -> None:
        stamps = [stamp_of(path) for path in self._files_of(sweep)]
        failures: list[Exception] = []
        output_dir = self._settings.output_dir
        remove_leftovers(output_dir, [sweep.case])
        failed_dir = output_dir / FAILED_FOLDER / sweep.case
        with contextlib.closing(self._settings.stream(sweep)) as stream, contextlib.ExitStack() as landing:
            row = analyse_case(
                self._pipeline,
                sweep,
                stream,
                self._settings,
                self._maker,
                interrupts=self._interrupts,
                progress=self._beat_meanwhile,
                on_failure=failures.append,
                before_landing=functools.partial(landing.enter_context, self._interrupts.held()),
            )
            landing.enter_context(self._interrupts.held())
            try:
                if not failures:
                    (failed_dir / RECORD_FILE).unlink(missing_ok=True)
                elif not is_for_now(failures[0]) and stamp_of(sweep.path) is not None:
                    write_record(failed_dir, stream.source, self._maker, row)
            except (OSError, ShortageError) as error:
                failures.append(error)
                complain(explain(error))
            if any(map(is_for_now, failures)):
                self._put_off[sweep.case] = stamps, time.monotonic() + RETRY_S
            if row.error:
                complain(row.sentence())
            else:
                log.info("%s", row.sentence())
            if stamp_of(sweep.path) is None:
                complain(f"{sweep.case}: its file was removed while it was analysed")
            self._table.take(row)
            self._write_table()


def _is_nameless_dicom(item: Path) -> bool:
    """Whether a file is DICOM by its content. What lists the files of a disc or a stick (PS3.10, 8.6) has no image."""
    return item.name.upper() != "DICOMDIR" and is_dicom(item)


def _age_s(files: list[Path]) -> float:
    """Seconds since any of a case's files, or one of the same stem beside it, was written. Raises OSError where the
    stack itself is gone or out of reach."""
    path, *others = files
    siblings = path.parent.glob(f"{glob.escape(path.stem)}.*")
    youngest = path.stat().st_mtime
    for file in {*others, *siblings}:
        with contextlib.suppress(OSError):
            youngest = max(youngest, file.stat().st_mtime)
    return time.time() - youngest
