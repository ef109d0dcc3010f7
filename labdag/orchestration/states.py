"""States with names of their own that runs end in, which Prefect's server has to know as such."""

from __future__ import annotations

from enum import StrEnum


class RetrainingState(StrEnum):
    """What came of a retraining; the name of its state in the UI."""

    REGISTERED = "Registered"  # it passed the gate
    NOT_REGISTERED = "NotRegistered"  # it did not
    UP_TO_DATE = "UpToDate"  # nothing has changed since the last one
