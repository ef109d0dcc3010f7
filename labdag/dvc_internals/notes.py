"""What a run and the DVC processes of its stages tell each other: names of variables, and how an error begins."""

from __future__ import annotations

NOTE = "LABDAG_NOTE"  # in the environment of a stage's processes: the file for notes of what it reads and makes
WRITES = "LABDAG_WRITES"  # likewise: what its command is known to write of what it reads, as JSON
SUSPECTS = "LABDAG_SUSPECTS"  # likewise: what changed during the try before, so that the command may have written it
ORDER = "LABDAG_ORDER"  # likewise: the file that has the order in which new entries come in lock files
TAINTED = "edited while it ran: "  # how DVC's error begins for a stage that must not be recorded
