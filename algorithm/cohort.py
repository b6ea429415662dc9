"""Many cases on many devices or machines at once, by Ray. Loaded only where a run asks for it.

A pool of actors, each of which loads the model once, and one queue: a case goes to whoever is free. Plain actors and
not Ray Data, whose pipeline fails or drops a whole block when a case takes its worker down.

What is known of a case whose worker has died: nothing. It may have crashed the worker, or somebody may have ended the
worker or its machine. So it is tried again at the end of the queue; and where that ends alike, it is set aside until
all others are done. If no other case has succeeded after such a death, the case itself is to blame, and it fails after
these two tries. If one has, workers are dying here of something else, and the case is tried a few times more.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acouslic.errors import AcouslicError
from acouslic.interrupts import Interrupts
from acouslic.paths import sees_file
from acouslic.sockets import SweepInput
from algorithm.predict import CaseStream, PredictSettings, analyse_case, row_of_done
from algorithm.process.collector import uncollected
from algorithm.process.cores import usable_cores
from algorithm.process.devices import Node, Share, divide, visible_gpus
from algorithm.process.environment import prepare_for_torch
from algorithm.result.record import Maker
from algorithm.result.table import ResultRow

if TYPE_CHECKING:
    from algorithm.pipeline import Pipeline

_TRIES = 2
"""Of a case whose worker dies each time, where no other case's does."""
_MOST_TRIES = 8
"""Of a case where workers die of something else too."""
_MOST_FAILED_STARTS = 3
"""In a row and a worker: then it is no accident."""
_OBJECT_STORE_BYTES = 80_000_000
"""Near Ray's least: only paths and rows pass through it."""
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
}
"""Of Ray with its own processes: on a busy machine its defaults take a slow one for a dead one."""
_START_TRIES = 3

log = logging.getLogger(__name__)


class CohortWorker:
    """The actor: one device, one loaded model, one case at a time."""

    def __init__(self, settings: PredictSettings, maker: Maker, cores: int, token: str, folder: Path) -> None:
        with contextlib.suppress(OSError):  # Where it is not there, only absolute paths lead anywhere.
            # Ray starts it where Ray was started, but relative paths are those of the driver's folder.
            os.chdir(folder)
        # Before torch is loaded, which reads them once.
        os.environ["OMP_NUM_THREADS"] = str(cores)
        prepare_for_torch()
        self._settings, self._maker, self._token = settings, maker, token
        self._pipeline: Pipeline | None = None
        self._ahead: tuple[SweepInput, CaseStream] | None = None

    def load(self) -> str:
        """Load the model; a sentence on who this is and where it runs."""
        node = socket.gethostname()
        if not sees_file(self._settings.output_dir / self._token):
            raise AcouslicError(f"{node} does not see {self._settings.output_dir}: every machine must mount it")
        with uncollected():
            from algorithm.pipeline import Pipeline

        self._pipeline = Pipeline.load(
            self._settings.model_dir, device=self._settings.device, batch_frames=self._settings.batch_frames
        )
        ensemble = self._pipeline.ensemble
        precision = str(ensemble.dtype).removeprefix("torch.")
        cores = os.environ["OMP_NUM_THREADS"]
        return f"worker {os.getpid()} on {node}: {ensemble.device}, {precision}, {cores} CPU threads"

    def analyse(self, sweep: SweepInput, following: SweepInput | None, *, again: bool) -> ResultRow:
        """One case; meanwhile the next one's stack is read. `again`: an earlier try may have ended after its result."""
        assert self._pipeline is not None
        ahead, self._ahead = self._ahead, None
        if following is not None:
            self._ahead = following, self._settings.stream(following)
        if ahead is not None and ahead[0] != sweep:
            ahead[1].close()
            ahead = None
        with contextlib.closing(self._settings.stream(sweep) if ahead is None else ahead[1]) as stream:
            if again:
                row = row_of_done(sweep, self._settings, self._maker)
                if row is not None:
                    return row
            return analyse_case(self._pipeline, sweep, stream, self._settings, self._maker)


@dataclass
class _Case:
    sweep: SweepInput
    deaths: int = 0
    """Of workers that had it."""


@dataclass
class _Hand:
    """A worker as the driver sees it."""

    actor: Any
    case: _Case | None = None
    following: _Case | None = None
    """Reserved for it: it reads the stack already."""


def analyse_cohort(
    sweeps: Sequence[SweepInput],
    settings: PredictSettings,
    maker: Maker,
    interrupts: Interrupts,
    *,
    begin: Callable[[], object],
    take: Callable[[ResultRow], object],
) -> None:
    """Analyse the cases on all workers. `begin` is called when the model is loaded, `take` gets each row as it comes.

    Raises AcouslicError where Ray cannot be started or joined, there are fewer devices than workers, the model cannot
    be loaded, or a machine does not see the output folder.
    """
    with _ray(settings, interrupts) as ray:
        nodes = [
            Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
            for node in ray.nodes()
            if node["Alive"]
        ]
        share = divide(nodes, settings.workers, settings.device)
        share = dataclasses.replace(share, workers=min(share.workers, len(sweeps)))
        token = f".cohort-{uuid.uuid4().hex}"
        (settings.output_dir / token).touch()
        dispatcher = Dispatcher(ray, share, settings, maker, token, begin=begin, take=take)
        try:
            dispatcher.run(sweeps)
        finally:
            dispatcher.end_workers()
            (settings.output_dir / token).unlink(missing_ok=True)


@contextlib.contextmanager
def _ray(settings: PredictSettings, interrupts: Interrupts) -> Iterator[Any]:
    """Ray, joined or started for this run, and left or ended at its end."""
    with interrupts.held():
        # Nothing is sent anywhere.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError:
            raise AcouslicError(
                "several workers need Ray, which is not installed: run requirements/set_up.sh cohort, or divide the "
                "cases by --num-parts and --part-id"
            ) from None
    keywords: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.ray_address is None:
        cores, _ = usable_cores()
        gpus = 0 if settings.device == "cpu" else visible_gpus()
        keywords |= {"num_cpus": cores, "num_gpus": gpus, "include_dashboard": False}
        keywords |= {"object_store_memory": _OBJECT_STORE_BYTES}
    try:
        with interrupts.held():
            _start_or_join(ray, settings.ray_address, keywords)
            # Ray has put a handler of its own in their place.
            interrupts.install()
        yield ray
    finally:
        ray.shutdown()


def _start_or_join(ray: Any, address: str | None, keywords: dict[str, Any]) -> None:
    """Raises AcouslicError where it fails; starting is tried again, since Ray waits for its processes 30 s at most."""
    for tries_left in range(_START_TRIES if address is None else 1, 0, -1):
        try:
            ray.init(address=address or "local", **keywords)
            return
        except Exception as error:
            ray.shutdown()
            if tries_left > 1:
                log.info("Ray did not start in time, as on a busy machine; once more")
                continue
            what = "started" if address is None else f"joined at {address}"
            raise AcouslicError(f"Ray could not be {what}: {error}") from error


class Dispatcher:
    """Hands cases out and takes rows in, in the driver."""

    def __init__(
        self,
        ray: Any,
        share: Share,
        settings: PredictSettings,
        maker: Maker,
        token: str,
        *,
        begin: Callable[[], object],
        take: Callable[[ResultRow], object],
    ) -> None:
        self._ray, self._share = ray, share
        self._begin, self._take = begin, take
        self._make = lambda: (
            ray.remote(CohortWorker)
            .options(num_cpus=share.cores_each, num_gpus=share.gpus_each, max_restarts=0)
            .remote(settings, maker, share.cores_each, token, Path.cwd())
        )
        self._waiting: deque[_Case] = deque()
        self._set_aside: list[_Case] = []
        self._recovered = False
        """Whether a case has come through after a worker's death."""
        self._calls: dict[Any, _Hand] = {}
        self._idle: list[_Hand] = []
        self._failed_starts = 0
        self._begun = False
        self._metrics = _Metrics()

    def run(self, sweeps: Sequence[SweepInput]) -> None:
        """Until every case has its row."""
        self._waiting.extend(_Case(sweep) for sweep in sweeps)
        for _ in range(self._share.workers):
            self._start_worker()
        while self._calls and (self._waiting or self._set_aside or any(hand.case for hand in self._calls.values())):
            ready, _ = self._ray.wait(list(self._calls), num_returns=1)
            for call in ready:
                self._end_call(call, self._calls.pop(call))
            if not self._waiting and not any(hand.case for hand in self._calls.values()):
                self._judge_set_aside()
            self._metrics.waiting(len(self._waiting))
            while self._idle and self._waiting:
                self._hand_out(self._idle.pop())

    def end_workers(self) -> None:
        """At once, whatever they are doing."""
        for hand in [*self._calls.values(), *self._idle]:
            self._ray.kill(hand.actor)

    def _start_worker(self) -> None:
        hand = _Hand(self._make())
        self._calls[hand.actor.load.remote()] = hand

    def _hand_out(self, hand: _Hand) -> None:
        hand.case = hand.following or self._waiting.popleft()
        # The last cases are for whoever is free first.
        hand.following = self._waiting.popleft() if len(self._waiting) > self._share.workers else None
        following = None if hand.following is None else hand.following.sweep
        call = hand.actor.analyse.remote(hand.case.sweep, following, again=hand.case.deaths > 0)
        self._calls[call] = hand

    def _end_call(self, call: Any, hand: _Hand) -> None:
        failures = self._ray.exceptions
        try:
            answer = self._ray.get(call)
        # The second is no kind of the first: Ray itself has ended the worker, where the machine's memory ran low.
        except (failures.RayActorError, failures.OutOfMemoryError) as error:
            self._bury(hand, error)
            return
        except failures.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        if hand.case is None:
            self._failed_starts = 0
            log.info("%s", answer)
            if not self._begun:
                self._begun = True
                self._begin()
        else:
            self._recovered |= hand.case.deaths > 0
            hand.case = None
            self._metrics.case(answer)
            self._take(answer)
        if hand.following is not None:
            self._hand_out(hand)
        else:
            self._idle.append(hand)

    def _bury(self, hand: _Hand, error: Exception) -> None:
        """A worker has died: its cases go back, and another takes its place."""
        # It may only be out of reach, and would go on with the case and keep its device.
        self._ray.kill(hand.actor)
        log.info("a worker has died%s", "" if hand.case is None else f" with case {hand.case.sweep.case}")
        self._metrics.death()
        if hand.following is not None:
            self._waiting.appendleft(hand.following)
        if hand.case is None:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS * self._share.workers:
                raise AcouslicError(f"workers die while they load the model: {str(error).splitlines()[-1]}")
        else:
            hand.case.deaths += 1
            (self._waiting.append if hand.case.deaths < _TRIES else self._set_aside.append)(hand.case)
        self._start_worker()

    def _judge_set_aside(self) -> None:
        """All others are done: the cases whose workers died twice fail, or are tried again."""
        cases, self._set_aside = self._set_aside, []
        for case in cases:
            if self._recovered and case.deaths < _MOST_TRIES:
                self._waiting.append(case)
                continue
            row = ResultRow(
                case.sweep.case,
                error=f"its worker died {case.deaths} times: the case ends the program, or takes more memory than "
                "there is; run it alone to see why",
            )
            self._metrics.case(row)
            self._take(row)


class _Metrics:
    """Counted for Prometheus by Ray's own exporter, where that is installed (`ray[default]`); else nobody asks."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._cases = Counter("acouslic_cases", "Cases that ended, by outcome.", tag_keys=("outcome",))
        self._seconds = Histogram(
            "acouslic_case_seconds",
            "Of a case that was analysed.",
            boundaries=[0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600],
        )
        self._waiting = Gauge("acouslic_cases_waiting", "Cases that no worker has yet.")
        self._deaths = Counter("acouslic_worker_deaths", "Workers that died.")

    def case(self, row: ResultRow) -> None:
        """A case has ended."""
        self._cases.inc(1, tags={"outcome": "failed" if row.error else "done"})
        if row.seconds is not None:
            self._seconds.observe(row.seconds)

    def waiting(self, cases: int) -> None:
        """So many cases wait."""
        self._waiting.set(cases)

    def death(self) -> None:
        """A worker has died."""
        self._deaths.inc(1)
