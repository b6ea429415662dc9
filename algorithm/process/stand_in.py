"""A second process that answers requests while this one reads and sets up torch.

A thread of this process could not: the dynamic linker reads torch's libraries, and Python reads compiled modules, with
the interpreter's lock held, for half a second at a time. The stand-in is forked before that, and ends when it is no
longer needed or when this process ends, however that happens.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

_ENDING = (signal.SIGTERM, signal.SIGINT)
_PATIENCE_S = 1.0
"""For requests that the stand-in has begun to answer, and for clients to close their connections."""
_LOOK_EVERY_S = 0.01


class StandIn:
    """Answers from its creation to `step_aside`. Create it before any thread of Python, and before torch is loaded.

    `make_server` makes a waitress server on a socket that listens already; it is called in the stand-in. Raises OSError
    where no process can be started.
    """

    def __init__(self, make_server: Callable[[], Any]) -> None:
        self._control, other_end = socket.socketpair()
        # The stand-in must not hear a signal by this process's handlers: it would end as this process does, with words.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _stand_in(make_server, self._control, other_end)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        other_end.close()

    def step_aside(self) -> None:
        """Return when it takes no more connections. It finishes what it has begun, and ends."""
        with contextlib.suppress(OSError):  # it has been killed: then it takes none either
            self._control.sendall(b"x")
            self._control.recv(1)
        # Not now: that may take a second.
        threading.Thread(target=self._bury, name="stand-in", daemon=True).start()

    def _bury(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._control.close()


def _stand_in(make_server: Callable[[], Any], parents_end: socket.socket, control: socket.socket) -> NoReturn:
    """The life of the stand-in; whatever happens, it never returns into what its parent was doing."""
    try:
        parents_end.close()
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        server = make_server()
        threading.Thread(target=server.run, daemon=True).start()
        if control.recv(1):  # nothing comes where the parent has ended
            _stop_accepting(server)
            control.sendall(b"x")
            deadline = time.monotonic() + _PATIENCE_S
            while server.active_channels and time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY_S)
    finally:
        os._exit(0)


def _stop_accepting(server: Any) -> None:
    """Return when the server's loop takes no more connections; those that it has are still answered."""
    stopped = threading.Event()

    def stop() -> None:
        server.accepting = False
        stopped.set()

    # In the loop's own thread: it never stands between looking and accepting.
    server.trigger.pull_trigger(stop)
    stopped.wait()
