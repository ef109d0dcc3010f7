"""What a user can mend: his own mistake, or the state of his machine."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where, and what would be right, in one sentence."""
