"""What a stage prints, on its way to a log: whole lines, progress bars now and then, and never a flood."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Iterator

PROGRESS_SECONDS = 10.0
LINES_PER_SECOND = 50
BURST = 500
LONGEST = 4000  # characters of a line

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Lines:
    """Splits a stream of bytes into lines.

    What a carriage return overwrites on a terminal is a state of a progress bar: of these one passes now and then,
    and the last one always.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._shown_at = -PROGRESS_SECONDS

    def feed(self, data: bytes) -> Iterator[str]:
        """Lines that `data` completes, without their ends; empty `data` ends the stream."""
        self._rest += self._decoder.decode(data, final=not data)
        *lines, self._rest = self._rest.replace("\r\n", "\n").split("\n")
        if not data and self._rest:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            yield _clean(line.rstrip("\r").rpartition("\r")[2])
        # A bar in the making: the newest whole state, if it is time; a return just read may belong to a line's end.
        states = self._rest.split("\r")
        if len(states) > 1 and states[-1] != "":
            self._rest = states[-1]
            if states[-2] and self._clock() - self._shown_at >= PROGRESS_SECONDS:
                self._shown_at = self._clock()
                yield _clean(states[-2])


def _clean(line: str) -> str:
    line = _CONTROL.sub("", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(line):,} characters)"


class Throttle:
    """Lets so many lines a second pass, and tells how many did not.

    Args:
        log: takes what passes.
        where: where all of it can be read.
        clock: tells seconds.
    """

    def __init__(self, log: Callable[[str], None], where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._where, self._clock = log, where, clock
        self._allowance, self._last, self._held = float(BURST), clock(), 0

    def __call__(self, line: str) -> None:
        """Pass the line, or count it."""
        now = self._clock()
        self._allowance = min(float(BURST), self._allowance + (now - self._last) * LINES_PER_SECOND)
        self._last = now
        if self._allowance < 1:
            self._held += 1
            return
        self._allowance -= 1
        self.close()
        self._log(line)

    def close(self) -> None:
        """Tell of the lines that were held back, if any."""
        if self._held:
            self._log(f"… {self._held:,} lines more, in {self._where}")
            self._held = 0
