"""Invoke mode: an HTTP server that analyses whatever lies in the input folder when it is asked to.

`GET /health` answers 200 once the model is loaded, 503 before. `POST /invoke` answers 201 when the results are
complete, 500 with a sentence where the case failed. One case runs at a time; a few requests wait their turn, and any
more are answered 503 at once. A request has no body; a large one is refused unread, and a silent connection is dropped.
"""

import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import waitress

from acouslic.errors import AcouslicError
from acouslic.sockets import find_sweep_input
from algorithm.frames.frame_stream import FrameStream
from algorithm.model.file_hashes import begin_hashing
from algorithm.model.manifest import read_manifest
from algorithm.process.collector import uncollected
from algorithm.process.messages import complain, explain, log_line
from algorithm.process.stand_in import StandIn
from algorithm.process.timing import process_age_s
from algorithm.result.outputs import prepare_output, remove_files_of_run, removed_on_failure

if TYPE_CHECKING:
    from algorithm.pipeline import Pipeline

_MOST_WAITING = 4
"""Requests that wait for the case that runs. Whoever sends more learns at once that they would wait long."""
_THREADS = 16
"""One case runs and a few wait, each in a thread; the others answer health checks beside them."""
_MOST_BODY_BYTES = 64 * 1024
_MOST_HEADER_BYTES = 16 * 1024
_IDLE_S = 10
"""A connection on which nothing happens for this long is dropped."""
_MOST_CONNECTIONS = 1000
_OTHER_FILES = 100
"""What the program itself needs of the files it may have open."""
_STOP_PATIENCE_S = 3.0
"""The platform kills what has not ended 5 s after SIGTERM."""
_ENDING = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


class Service:
    """The WSGI application. `pipeline` is set once the model is loaded."""

    def __init__(self, input_dir: Path, output_dir: Path) -> None:
        # Kept as given: the folder may be a symbolic link that leads elsewhere at the next request.
        self._input_dir = input_dir
        self._output_dir = output_dir
        # Always the same thread, whichever took the request: CUDA's libraries set themselves up once a thread.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cases")
        self._places = threading.Semaphore(1 + _MOST_WAITING)
        self.writing = threading.Lock()
        """Held while files are written: whoever ends the process takes it, so that results are whole or absent."""
        self.pipeline: Pipeline | None = None

    def load(self, model_dir: Path, *, device: str | None, batch_frames: int | None) -> None:
        """Load the model; requests are answered from then on. Raises AcouslicError as `Pipeline.load`."""
        self.pipeline = self._worker.submit(self._load, model_dir, device, batch_frames).result()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        status, text, allowed = self._answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        body = text.encode("utf-8", errors="backslashreplace")
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        if allowed is not None:
            headers.append(("Allow", allowed))
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    def _answer(self, method: str, path: str) -> tuple[HTTPStatus, str, str | None]:
        """Status, text, and the methods that would be allowed where this one is not."""
        if path == "/health":
            if method not in ("GET", "HEAD"):
                return HTTPStatus.METHOD_NOT_ALLOWED, "GET /health\n", "GET, HEAD"
            if self.pipeline is None:
                return HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded\n", None
            return HTTPStatus.OK, "ready\n", None
        if path == "/invoke":
            if method != "POST":
                return HTTPStatus.METHOD_NOT_ALLOWED, "POST /invoke\n", "POST"
            return *self._invoke(), None
        return HTTPStatus.NOT_FOUND, "there are GET /health and POST /invoke\n", None

    def _invoke(self) -> tuple[HTTPStatus, str]:
        if self.pipeline is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded\n"
        if not self._places.acquire(blocking=False):
            return HTTPStatus.SERVICE_UNAVAILABLE, f"a case runs and {_MOST_WAITING} wait: ask again later\n"
        try:
            self._worker.submit(self._run_case, self.pipeline).result()
        except Exception as error:
            sentence = explain(error)
            complain(sentence)
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"{sentence}\n"
        finally:
            self._places.release()
        return HTTPStatus.CREATED, ""

    @staticmethod
    def _load(model_dir: Path, device: str | None, batch_frames: int | None) -> "Pipeline":
        begin_hashing(model_dir)
        with uncollected():
            from algorithm.pipeline import Pipeline

        pipeline = Pipeline.load(model_dir, device=device, batch_frames=batch_frames, import_s=process_age_s())
        _import_first_used()
        if pipeline.recheck is not None:
            # Before the first request, not within it.
            pipeline.recheck.members()
        return pipeline

    def _run_case(self, pipeline: "Pipeline") -> None:
        with removed_on_failure(self._output_dir):
            with self.writing:
                prepare_output(self._output_dir)
            sweep = find_sweep_input(self._input_dir)
            with contextlib.closing(FrameStream(sweep.path, stills=False)) as stream:
                pipeline.run_stream(stream, self._output_dir, sweep.case, writing=self.writing)


def _import_first_used() -> None:
    """What the first case would import. No other thread runs Python while a module is read: health would wait."""
    import imagecodecs  # noqa: F401 - it is there, that is all
    import numpy.ma  # noqa: F401 - likewise

    import acouslic.reading.tiff  # noqa: F401 - likewise
    from acouslic.reading.tiff_pages import load_tifffile

    load_tifffile()


def serve(
    input_dir: Path, output_dir: Path, model_dir: Path, *, port: int, device: str | None, batch_frames: int | None
) -> NoReturn:
    """Listen on `port`, load the model in `model_dir`, answer requests until SIGTERM or SIGINT ends the process.

    Raises AcouslicError where the port is taken or the model cannot be loaded.
    """
    read_manifest(model_dir)
    service = Service(input_dir, output_dir)
    # A request that waits for its turn would fill the log with a line each second.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    listener = _listen(port)
    stand_in = StandIn(lambda: create_server(service, listener))
    _stop_on_signals(service, output_dir)
    log.info("listening on port %d; loading the model", port)

    service.load(model_dir, device=device, batch_frames=batch_frames)
    stand_in.step_aside()
    threading.Thread(target=create_server(service, listener).run, name="http", daemon=True).start()
    log.info("ready")
    while True:
        # Not `signal.pause`, which would miss a signal that comes just before it.
        time.sleep(0.5)


def _listen(port: int) -> socket.socket:
    """A socket to which clients can connect from now on. Raises AcouslicError where the port is taken."""
    listener = socket.socket()
    # A server that was just stopped leaves connections behind, which would keep the port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("0.0.0.0", port))
        listener.listen(_MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise AcouslicError(f"port {port} cannot be listened on: {error.strerror}") from error
    return listener


def create_server(service: Service, listener: socket.socket) -> Any:
    """The HTTP server on a socket that listens; its `run` answers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return waitress.create_server(
        service,
        sockets=[listener],
        ident=None,
        threads=_THREADS,
        connection_limit=max(_OTHER_FILES, min(_MOST_CONNECTIONS, files - _OTHER_FILES)),
        # select() knows no file descriptor above 1023.
        asyncore_use_poll=True,
        channel_timeout=_IDLE_S,
        cleanup_interval=_IDLE_S // 2,
        # Refused from its own size on, and never large enough for a temporary file.
        max_request_body_size=_MOST_BODY_BYTES + 1,
        max_request_header_size=_MOST_HEADER_BYTES,
    )


def _stop_on_signals(service: Service, output_dir: Path) -> None:
    """End the process on SIGTERM and SIGINT, at once but for files that are being written.

    A case that is being computed has written nothing yet and is dropped: its computation cannot be interrupted within
    the time the platform grants, but the process can end.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        # A second signal would wait in here for the lock that the first has taken, and then remove whole results.
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        if not service.writing.acquire(timeout=_STOP_PATIENCE_S):
            with contextlib.suppress(AcouslicError):
                remove_files_of_run(output_dir)
        # Neither print nor log: the signal may have come in the middle of one of them. And nothing may keep the
        # process from ending, a stdout that nobody reads least of all.
        try:
            _write_if_it_fits(1, log_line(log, f"stopped by {signal.Signals(number).name}").encode())
        finally:
            os._exit(0)

    for number in _ENDING:
        signal.signal(number, stop)


def _write_if_it_fits(descriptor: int, content: bytes) -> None:
    """Write without waiting for a reader. Raises OSError where there is no room; others who share the stream find it
    as it was."""
    blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        os.write(descriptor, content)
    finally:
        os.set_blocking(descriptor, blocking)
