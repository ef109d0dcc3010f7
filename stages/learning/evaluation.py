"""What a lab's `evaluate` block may say."""

from __future__ import annotations

from pydantic import Field

from stages.program.options import Options


class Evaluation(Options):
    """How the best weights are tested once more."""

    batch_size: int = Field(ge=1, description="Images per batch.")
