"""How retrainings end: states with names of their own, which Prefect's server must know to be ends."""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """What came of a retraining; the name of its state in the UI."""

    REGISTERED = "Registered"  # it passed the gate
    NOT_REGISTERED = "NotRegistered"  # it did not
    UP_TO_DATE = "UpToDate"  # nothing has changed since the last one
