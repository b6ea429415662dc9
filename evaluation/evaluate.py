"""All cases, shared among worker processes. If one of these dies, that is noticed and its case is named."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import cv2
import SimpleITK

from acouslic.errors import AcouslicError
from acouslic.interrupts import signals_held
from acouslic.workers import deaf_to_interrupts, end_with_parent, end_workers
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.limits import limit_own_memory, read_limits, worker_count
from evaluation.metrics.case_result import CaseResult

CASE_LIMIT_S = 120
"""A case takes about one second. One that takes this long never ends, and its worker is ended."""

_progress: Any = None
"""In a worker: one byte a task, shared with the parent: `_STARTED` where it has been begun."""
_STARTED = 1


def evaluate(
    tasks: Sequence[CaseTask], *, workers: int | None = None, case_limit_s: float = CASE_LIMIT_S
) -> list[CaseResult]:
    """The results in the order of the tasks; a line of progress for each on stdout.

    `workers` is by default what CPU and memory limits allow. Raises AcouslicError for the first task, in their order,
    that fails, and where a worker dies; a lenient task becomes a failed result instead.
    """
    if workers is None:
        workers = worker_count(read_limits(), len(tasks))
    print(f"{len(tasks)} cases, {workers} worker{'s' if workers > 1 else ''}", flush=True)
    results: dict[int, CaseResult] = {}
    pending = list(range(len(tasks)))
    while pending:
        suspects = _run(tasks, pending, workers, case_limit_s, results)
        # The pool says that a worker died, not on which case: those it had begun are tried one by one.
        for index in suspects:
            if _run(tasks, [index], 1, case_limit_s, results):
                results[index] = _result_of_death(tasks[index])
        pending = [index for index in pending if index not in results]
        if pending and not suspects:
            raise AcouslicError("the worker processes died before they began a case: is there enough memory?")
    return [results[index] for index in range(len(tasks))]


def _run(
    tasks: Sequence[CaseTask],
    indices: list[int],
    workers: int,
    case_limit_s: float,
    results: dict[int, CaseResult],
) -> list[int]:
    """Add the results of the tasks at `indices`; returns those that were under way when a worker died, if one did."""
    # A fresh interpreter for each worker: forking a process that has used a library's threads can hang.
    context = multiprocessing.get_context("spawn")
    progress = context.RawArray("B", len(tasks))
    executor = ProcessPoolExecutor(
        min(workers, len(indices)), mp_context=context, initializer=_start_worker, initargs=(progress, os.getpid())
    )
    futures: dict[int, Future[CaseResult]] = {}
    try:
        # A worker whose start is interrupted would tell of it.
        with signals_held(), deaf_to_interrupts():
            for index in indices:
                futures[index] = executor.submit(_work, index, tasks[index], case_limit_s)
        for index, future in futures.items():
            results[index] = future.result()
            print(f"[{len(results)}/{len(tasks)}] {results[index].case}: {_outcome(results[index])}", flush=True)
    except BrokenProcessPool:
        for index, future in futures.items():
            if index not in results and future.done() and future.exception() is None:
                results[index] = future.result()
        return [index for index in indices if progress[index] == _STARTED and index not in results]
    except KeyboardInterrupt:
        executor.shutdown(wait=False, cancel_futures=True)
        end_workers()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return []


def _outcome(result: CaseResult) -> str:
    return "scored" if result.failure is None else f"failed, {result.failure}"


def _result_of_death(task: CaseTask) -> CaseResult:
    case = task.source.case
    failure = (
        f"case {case}: the process that scored it died or did not end in time; its mask or score file is likely damaged"
    )
    if not task.lenient or task.submission is None:
        raise AcouslicError(failure)
    # Without the submission there is nothing left that could end this process too.
    return evaluate_case(replace(task, submission=None, failure=failure))


def _start_worker(progress: Any, parent_pid: int) -> None:
    """Settings of a worker process: one thread for each library, bounded memory, silence, an end with its parent."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The default of this signal ends the process wherever it is, also inside a decoder that never returns.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    limit_own_memory()
    end_with_parent(parent_pid)


def _work(index: int, task: CaseTask, case_limit_s: float) -> CaseResult:
    _progress[index] = _STARTED
    signal.setitimer(signal.ITIMER_REAL, case_limit_s)
    try:
        return evaluate_case(task)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
