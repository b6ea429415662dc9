"""What people and the platform get to read: logs on stdout, and on stderr one sentence, if anything failed."""

import contextlib
import datetime
import errno
import json
import logging
import sys

from acouslic.errors import AcouslicError, ShortageError
from acouslic.missing_package import explain_missing
from acouslic.printable import one_line, printable, printable_lines
from acouslic.streams import set_up_streams
from algorithm.process.memory import is_out_of_memory

_MAX_SENTENCE_CHARACTERS = 4000
"""The platform takes lines of less than 64 KiB."""
_NO_THREAD = "can't start new thread"
_NO_ROOM_FOR_LIBRARIES = ("failed to map segment", "cannot allocate memory", "cannot create shared object descriptor")
"""What the dynamic linker says where the address space does not hold a library."""
_DISK_TROUBLES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}
"""Permissions too: whoever gives them changes no file."""

log = logging.getLogger(__name__)


class LogFormatter(logging.Formatter):
    """The message alone. Whatever a stranger's file put into it, a record is one line, and a traceback only its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text, without control characters."""
        text = printable(record.getMessage())
        if record.exc_info:
            text += "\n" + printable_lines(self.formatException(record.exc_info))
        return text


def set_up_messages() -> None:
    """Streams that never fail a run; log records and warnings to stdout."""
    set_up_streams()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: `time` (UTC), `level`, `logger`, `message`, and `traceback` of a failure.

    A message that is an object itself, as the timings of a case are, lends its fields instead of `message`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        message = record.getMessage()
        said: dict[str, object] = {"message": message}
        if message.startswith("{"):
            with contextlib.suppress(ValueError):
                said = json.loads(message)
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        fields = {"time": at, "level": record.levelname, "logger": record.name} | said
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        # JSON leaves this one control character as it is.
        return json.dumps(fields).replace("\x7f", "\\u007f")


def log_as_json() -> None:
    """Each line of the log as a JSON object from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())


def log_line(logger: logging.Logger, text: str) -> str:
    """The line that a log record of this text would be, for whoever must not write to the log just now."""
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, text, (), None)
    formatters = [handler.formatter for handler in logging.getLogger().handlers if handler.formatter is not None]
    return (formatters[0] if formatters else LogFormatter()).format(record) + "\n"


def explain(error: BaseException) -> str:
    """One sentence on one line for a failure. What is our own mistake goes to the log with its traceback too."""
    short_of = _shortage(error)
    if isinstance(error, AcouslicError):
        text = str(error)
    elif short_of is not None:
        text = short_of
        log.error("a shortage of the machine", exc_info=error)
    elif isinstance(error, ModuleNotFoundError) and (missing := explain_missing(error, "algorithm", "runtime")):
        text = missing
    else:
        log.error("unexpected error", exc_info=error)
        text = f"a bug in this program: {type(error).__name__}: {error}; its traceback is in the log on stdout"
    return one_line(" ".join(text.split()), _MAX_SENTENCE_CHARACTERS)


def is_for_now(error: BaseException) -> bool:
    """Whether a failure is the machine's (its memory, its disks and permissions, what is installed) and not the
    input's: tried again later, the same may do."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ShortageError | ImportError) or _shortage(reason) is not None:
            return True
        if isinstance(reason, OSError) and reason.errno in _DISK_TROUBLES:
            return True
        reason = reason.__cause__ or reason.__context__
    return False


def complain(sentence: str) -> None:
    """A sentence as the last line of stderr so far, after everything logged before it."""
    sys.stdout.flush()
    print(one_line(sentence, _MAX_SENTENCE_CHARACTERS), file=sys.stderr, flush=True)


def _shortage(error: BaseException) -> str | None:
    """What the machine, not the program, is short of; None where it is something else."""
    said = str(error)
    if isinstance(error, ImportError | OSError) and any(words in said for words in _NO_ROOM_FOR_LIBRARIES):
        return (
            f"the main memory does not hold the program's libraries ({said}): give the program more, or raise its "
            "limit of address space (ulimit -v)"
        )
    if isinstance(error, MemoryError) or "allocate memory" in said:
        return "the main memory does not suffice: give the program more, or smaller batches with --batch-frames"
    if is_out_of_memory(error):
        return "the GPU's memory does not suffice: free some, or use --device cpu"
    if (isinstance(error, RuntimeError) and _NO_THREAD in said) or _is(error, errno.EAGAIN):
        return (
            "no further thread can be started: raise the limit of processes (ulimit -u, a container's limit of pids), "
            "or that of memory"
        )
    if _is(error, errno.EMFILE) or _is(error, errno.ENFILE):
        return "too many files are open: raise the limit of open files (ulimit -n)"
    return None


def _is(error: BaseException, number: int) -> bool:
    return isinstance(error, OSError) and error.errno == number
