"""What becomes of a stage in a run. A new state is one line here, and one in README's list."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StageState(StrEnum):
    """How a stage ended; the name of its task's state in Prefect.

    Attributes:
        is_failure: whether what the stage should make is not there.
        is_reused: whether it is there without having run the command.
    """

    is_failure: bool
    is_reused: bool

    def __new__(cls, name: str, is_failure: bool = False, is_reused: bool = False) -> StageState:
        """Make a member of its name and what it means."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.is_failure, member.is_reused = is_failure, is_reused
        return member

    UNCHANGED = "Unchanged", False, True  # nothing that it reads changed
    CACHED = "Cached", False, True  # restored from DVC's cache
    COMPLETED = "Completed"  # its command ran
    RECORDED = "Recorded", False, True  # it has no command to run, or is frozen: what is there was recorded
    RECOVERED = "Recovered", False, True  # its command ran in an earlier run; DVC recorded what it made only now
    FAILED = "Failed", True
    TAINTED = "Tainted", True  # what it reads was edited while it ran, and again the second time
    SKIPPED = "Skipped", True  # something upstream failed
    CANCELLED = "Cancelled", True


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        stage: its name.
        ending: how it ended.
        reason: one sentence about it, or the error in the stage's own words.
        seconds: wall-clock time.
    """

    stage: str
    ending: StageState
    reason: str
    seconds: float = 0.0
