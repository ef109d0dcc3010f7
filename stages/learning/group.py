"""What a group of labs to be compared may say in params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.program.options import Options

LabName = Annotated[str, Field(description="Name of a block of `labs`.")]


class Group(Options):
    """Labs to be set side by side, and what for."""

    question: str = Field(default="", description="The question that the comparison answers.")
    look_for: str = Field(default="", description="What to look at in the comparison.")
    labs: list[LabName] = Field(
        min_length=2, max_length=12, description="Names of the labs; the others are held against the first one."
    )
