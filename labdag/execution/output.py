"""What a stage prints, on its way to a log: whole lines, progress bars now and then, and never a flood."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PROGRESS_SECONDS = 10.0
LINES_PER_SECOND = 50
BURST = 500
LONGEST = 4000  # characters of a line
KEPT = 8 * LONGEST  # bytes that are kept of a line in the making: some of them may be control sequences

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Lines:
    """Splits a stream of bytes into lines, in linear time and bounded memory, however long a line is.

    What a carriage return overwrites on a terminal is a state of a progress bar: of these one passes now and then,
    and the last one always.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rest = _Text()  # the state in the making
        self._whole = _Text()  # the last state before it in this line that was not empty
        self._shown_at = -PROGRESS_SECONDS

    def feed(self, data: bytes) -> Iterator[str]:
        """Lines that `data` completes, without their ends; empty `data` ends the stream."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._take(line)
            yield (self._rest or self._whole).shown()
            self._rest, self._whole = _Text(), _Text()
        self._take(rest)
        if not data and (self._rest or self._whole):
            yield (self._rest or self._whole).shown()
            self._rest, self._whole = _Text(), _Text()
        elif self._rest and self._whole:  # a bar, whose newest whole state may be shown
            if self._clock() - self._shown_at >= PROGRESS_SECONDS:
                self._shown_at = self._clock()
                yield self._whole.shown()
            self._whole = _Text()

    def _take(self, part: bytes) -> None:
        """Take in a part of a line, of which only the last two states that are not empty are of interest."""
        before, returned, state = part.rpartition(b"\r")
        if not returned:
            self._rest = self._rest.with_more(part)
            return
        _, returned, whole = before.rstrip(b"\r").rpartition(b"\r")
        found = _Text().with_more(whole) if returned else self._rest.with_more(whole)
        self._whole = found or self._whole
        self._rest = _Text().with_more(state)


@dataclass(frozen=True)
class _Text:
    """The beginning of a text, and how many bytes it has."""

    kept: bytes = b""
    length: int = 0

    def __bool__(self) -> bool:
        return self.length > 0

    def with_more(self, data: bytes) -> _Text:
        return _Text(self.kept + data[: KEPT - len(self.kept)], self.length + len(data)) if data else self

    def shown(self) -> str:
        line = _CONTROL.sub("", self.kept.decode(errors="replace"))
        if len(line) <= LONGEST and self.length == len(self.kept):
            return line
        return f"{line[:LONGEST]}… ({self.length:,} bytes)"


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
