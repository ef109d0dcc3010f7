"""What a lab is expected to reach and to cost, and whether what was measured agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from stages.program.options import Options


class Expectation(Options):
    """The result that a lab should give, who says so, and what it costs."""

    accuracy: float | None = Field(
        default=None, gt=0, le=1, description="Expected test accuracy of the best epoch, as a fraction of 1."
    )
    tolerance: float | None = Field(
        default=None, gt=0, lt=1, description="How far a measured accuracy may be from it, on either side."
    )
    reported: bool = Field(
        default=False, description="Whether the source reports that accuracy for this very recipe, or it is our own."
    )
    source: str = Field(default="", description="Where the expected accuracy, and the recipe, come from.")
    cost: str = Field(default="", description="What the lab's training costs, from the time of some of its steps.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.accuracy is None) != (self.tolerance is None):
            raise ValueError("accuracy and tolerance go together; give both or neither.")
        if self.reported and self.accuracy is None:
            raise ValueError("reported needs an accuracy; give one, or leave it out.")
        return self


@dataclass(frozen=True)
class Verdict:
    """Whether a measured result is as expected.

    Attributes:
        agrees: none where nothing is expected.
        sentence: the same in words.
    """

    agrees: bool | None
    sentence: str


def judge(expected: Expectation, accuracy: float) -> Verdict:
    """Hold a measured test accuracy, a fraction of 1, against what is expected."""
    if expected.accuracy is None or expected.tolerance is None:
        return Verdict(None, f"{accuracy:.2%}; no accuracy is expected of this lab")
    # A hair more than the tolerance: 0.9908 - 0.9888 is more than 0.002 in binary fractions.
    agrees = abs(accuracy - expected.accuracy) <= expected.tolerance + 1e-9
    within = "within" if agrees else "outside"
    bounds = f"{expected.accuracy:.2%} ± {expected.tolerance * 100:.2f} points"
    return Verdict(agrees, f"{accuracy:.2%}, {within} the expected {bounds}")
