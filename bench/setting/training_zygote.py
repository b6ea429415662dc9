"""A process that has imported what training needs, and forks a run for each line that it reads.

    python -m bench.setting.training_zygote

A run of its own imports torch for longer than it trains a tiny network, so one that is stopped at a random moment is
stopped while it imports. Each line on stdin is JSON, `{"words": [...], "stderr": PATH}`; the answers on stdout are the
child's number, and when it has ended its status as `os.waitstatus_to_exitcode` has it.
"""

import json
import os
import signal
import sys

import training.fit  # noqa: F401 - so that no child has to import it
from training.__main__ import main


def _serve() -> int:
    """Answers requests until stdin ends; a child returns its own exit code from here, and ends as Python ends."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_a_run(request["stderr"])
            return main(request["words"])
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def _be_a_run(stderr: str) -> None:
    """As a process that was just started: a session, streams and signal handlers of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, os.devnull, os.O_WRONLY),
        (2, stderr, os.O_WRONLY),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)


if __name__ == "__main__":
    sys.exit(_serve())
