"""The command line that all stages share: names as arguments, exit codes, faults in a sentence."""

from __future__ import annotations

import argparse
import errno
import gc
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from stages.program.options import UserError

KEPT = "no output was written; the next run goes on from what was saved, if anything was."
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def command(stage: Callable[..., None], argument: str, description: str | None, others: str | None = None) -> NoReturn:
    """Run `stage` with the name given on the command line, and exit.

    Args:
        stage: takes the name, and what else was given.
        argument: what the name stands for.
        description: the stage's docstring.
        others: what further names stand for, where a stage takes some.

    Exits with 0 when done, 1 after a fault (told on standard error), 2 for a wrong call, 130 after Ctrl-C
    and 143 after SIGTERM. A stage writes whole files or none, so an interrupted one leaves nothing behind.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("name", metavar=argument, help=f"a block of params.yaml: the {argument.lower()} to work on")
    if others is not None:
        parser.add_argument("others", metavar=others, nargs="*", help="names of what dvc.yaml declares as its input")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    gc.enable()
    try:
        stage(given.name, *(given.others if others is not None else ()))
    except UserError as error:
        sys.exit(_told(str(error)))
    except OSError as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        sys.exit(_told(sentence))
    except KeyboardInterrupt:
        _told(f"interrupted; {KEPT}")
        sys.exit(INTERRUPTED)
    finally:
        # Python looks for garbage once more before it exits, in all that torch consists of: a fifth of a short stage.
        # It has to where a model is compiled: triton, which that takes, complains of all that is not freed then.
        if "triton" not in sys.modules:
            gc.freeze()
    sys.exit(0)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    _told(f"terminated; {KEPT}")
    sys.exit(TERMINATED)


def _told(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr, flush=True)
    return 1


def _sentence(error: OSError) -> str | None:
    where = f" at {error.filename}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full{where}; free some space and run again. Nothing half-written was kept."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no permission to write{where}; make the folder writable and run again."
        case errno.ENOTDIR | errno.EEXIST:
            return f"a file stands where a folder is needed{where}; move it away and run again."
        case errno.ENOENT:
            return f"there is no file{where}; run the stages that come before (`dvc repro` does)."
        case _:
            return None
