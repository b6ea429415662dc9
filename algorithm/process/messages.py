"""What people and the platform get to read: logs on stdout, and on stderr one sentence, if anything failed."""

import logging
import sys

from acouslic.errors import AcouslicError
from algorithm.process.memory import is_out_of_memory

_MAX_SENTENCE_CHARACTERS = 4000
"""The platform takes lines of less than 64 KiB."""

log = logging.getLogger(__name__)


def set_up_streams() -> None:
    """UTF-8 on both streams, whatever the locale; log records and warnings to stdout."""
    for stream in (sys.stdout, sys.stderr):
        # Neither is a text file of its own where a test has replaced it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    logging.captureWarnings(True)


def explain(error: BaseException) -> str:
    """One sentence on one line for a failure. What is our own mistake goes to the log with its traceback too."""
    if isinstance(error, AcouslicError):
        text = str(error)
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        log.error("out of memory", exc_info=error)
        text = "the main memory does not suffice: give the program more, or smaller batches with --batch-frames"
    elif is_out_of_memory(error):
        log.error("out of memory", exc_info=error)
        text = "the GPU's memory does not suffice: free some, or use --device cpu"
    else:
        log.error("unexpected error", exc_info=error)
        text = f"a bug in this program: {type(error).__name__}: {error}; its traceback is in the log on stdout"
    sentence = " ".join(text.split())
    if len(sentence) > _MAX_SENTENCE_CHARACTERS:
        sentence = f"{sentence[:_MAX_SENTENCE_CHARACTERS]} ..."
    return sentence


def complain(sentence: str) -> None:
    """A sentence as the last line of stderr so far, after everything logged before it."""
    sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)
