"""What a stage prints, on its way to the log."""

from __future__ import annotations

import time

from labdag.execution.output import LONGEST, Lines


def fed(*parts: bytes, seconds: float = 0.0) -> list[str]:
    """All lines of a stream that comes in parts, so many seconds after each other."""
    now = [0.0]
    lines, found = Lines(lambda: now[0]), list[str]()
    for part in (*parts, b""):
        found += lines.feed(part)
        now[0] += seconds
    return found


def test_lines_come_whole_wherever_the_stream_is_cut() -> None:
    text = "eins\n\nzwölf\r\nlast".encode()
    for cut in range(len(text)):
        assert fed(text[:cut], text[cut:]) == ["eins", "", "zwölf", "last"]


def test_of_a_progress_bar_the_last_state_remains() -> None:
    bar = b"\r 10%\r 50%\r100%\n"
    for cut in range(len(bar)):
        assert fed(bar[:cut], bar[cut:])[-1] == "100%"
    assert fed(b"\r 10%", b"\r 20%", b"\r 30%", b"\n", seconds=6)[-1] == " 30%"


def test_a_progress_bar_shows_itself_every_ten_seconds() -> None:
    states = [f"\r{n}%".encode() for n in range(100)]
    assert len(fed(*states, seconds=1.0)) in range(9, 13)


def test_of_a_line_that_is_too_long_the_beginning_remains() -> None:
    (line,) = fed(*[b"x" * 1000] * 100, b"\n")
    assert line == "x" * LONGEST + "… (100,000 bytes)"


def test_time_is_linear_in_the_length_of_a_line_and_in_the_states_of_a_bar() -> None:
    """Twenty times the length would take 400 times as long where it is quadratic."""

    def seconds(part: bytes, count: int) -> float:
        lines, begun = Lines(), time.process_time()
        for _ in range(count):
            list(lines.feed(part))
        return time.process_time() - begun

    for part in (b"x" * 65536, b"\rx" * 32768, b"\r" * 65536):
        assert seconds(part, 400) < 60 * max(seconds(part, 20), 0.001)
