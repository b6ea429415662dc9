"""How far a run of many cases is: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

EVERY_S = 60.0
"""Between two lines in a log."""

log = logging.getLogger(__name__)


class Progress:
    """Of `total` cases. Use it as a context manager, so that the bar vanishes at the end."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started_at = self._said_at = time.monotonic()
        self._bar = tqdm(
            total=total,
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
            bar_format="{percentage:3.0f} %|{bar}| {elapsed} so far, about {remaining} more, {rate_fmt}",
            unit=" cases",
            leave=False,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def start(self) -> None:
        """Count the time from now: until now nothing was analysed, only loaded."""
        self._started_at = self._said_at = time.monotonic()
        self._bar.reset()

    def share(self, share: float) -> None:
        """So much of the case after those that are done."""
        self._bar.update(self._done + share - self._bar.n)

    def end_case(self, sentence: str) -> None:
        """One more case is done, with the line of its result."""
        self._done += 1
        self.share(0.0)
        if self._bar.disable:
            log.info("%s", sentence)
        else:
            self._bar.write(sentence, file=sys.stdout)
        now = time.monotonic()
        if self._bar.disable and now - self._said_at >= EVERY_S and self._done < self._total:
            self._said_at = now
            log.info("%s", self.sentence(now - self._started_at))

    def sentence(self, elapsed_s: float) -> str:
        """How many are done, at what rate, and how long the others take at that."""
        rate = self._done / elapsed_s
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
        return f"{self._done} of {self._total} cases, {60 * rate:.1f} a minute, about {left} more"
