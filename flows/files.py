"""Files that are replaced at once and removed whatever they are."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def replace(path: Path, text: str, folder: Path) -> None:
    """Put `text` in the place of a file's, at once and for good, by way of a temporary file in `folder`.

    Raises:
        OSError: it can't be written; the file is as it was.
    """
    is_near = folder.stat().st_dev == path.parent.stat().st_dev  # else it can't be renamed from there
    handle, temporary = tempfile.mkstemp(dir=folder if is_near else path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode & 0o777)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
