"""What a process asks of the kernel about its parent and its children."""

from __future__ import annotations

import ctypes
import os
import signal

PARENT = "LABDAG_PARENT"  # in the environment of a run: the process that started it, with which it ends

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def end_with_parent(parent: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Have this process, which `parent` started, get a signal when that one ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:  # it is gone already
        os.kill(os.getpid(), how)


def adopt_orphans() -> None:
    """Become the parent of whatever loses its own below this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
