"""Whether a server on this machine answers: the image's health check."""

import contextlib
import http.client
import itertools
from pathlib import Path

from acouslic.errors import AcouslicError

_PATIENCE_S = 5.0
_SERVES = {(b"algorithm", b"serve"), (b"acouslic_cli", b"serve")}
"""What a server's command line says: `python -m algorithm serve`."""
_SCRIPT_SERVES = (b"acouslic", b"serve")
"""The command that an installed package gives: a script, which Python runs by its path."""


def check_server(port: int) -> None:
    """Ask `GET /health` of the server on `port`. Raises AcouslicError unless it answers 200 within 5 s."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        said = response.read(200).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise AcouslicError(f"nothing answers on port {port}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise AcouslicError(f"the server on port {port} answers {response.status}: {said}")


def is_server_here(processes: Path = Path("/proc")) -> bool:
    """Whether one of the processes that this one sees, in a container those of the container, is a server of ours."""
    for path in processes.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if _serves(path.read_bytes().split(b"\0")):
                return True
    return False


def _serves(words: list[bytes]) -> bool:
    """Whether a command line, the interpreter first, is that of a server: of a module or of the script."""
    if not _SERVES.isdisjoint(itertools.pairwise(words)):
        return True
    # Only the first word that is no option of the interpreter: a later one may be a case of that name.
    after_options = list(itertools.dropwhile(lambda word: word.startswith(b"-"), words[1:]))
    return len(after_options) > 1 and (after_options[0].split(b"/")[-1], after_options[1]) == _SCRIPT_SERVES
