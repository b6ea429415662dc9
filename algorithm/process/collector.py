"""Python's garbage collector rests while torch is imported: it would look through all that is new, and find nothing."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nothing is collected, and what is there at the end is never looked at again: modules stay for good.

    An import of torch takes a fifth less time so (bench/LOG.md, 62).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
