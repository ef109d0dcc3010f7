"""What a group of labs to be compared may say in params.yaml."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.program.options import Options

LabName = Annotated[str, Field(description="Name of a block of `labs`.")]


class Group(Options):
    """Labs to be set side by side, and what for."""

    question: str = Field(default="", description="The question that the comparison answers.")
    look_for: str = Field(default="", description="What to look at in the comparison.")
    labs: list[LabName] = Field(
        min_length=2, max_length=12, description="Names of the labs; the others are held against the first one."
    )
    pairs: list[Annotated[list[LabName], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="Pairs of these labs that are held against each other besides."
    )

    @model_validator(mode="after")
    def _of_the_labs(self) -> Self:
        for name in (name for pair in self.pairs for name in pair):
            if name not in self.labs:
                raise ValueError(f"pairs name '{name}', which is none of the comparison's labs.")
        return self
