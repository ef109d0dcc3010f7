"""Files: their names, how they are replaced at once, and removed whatever they are."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

LONGEST = 200  # bytes of what `file_name` makes, so that something can be put after it: file systems take 255
_DIGITS = 16  # of the digest in a name that would be longer


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


def file_name(text: str) -> str:
    """A file's name that stands for a text, such as a stage's name, and can be read as far as it fits."""
    name = "".join(letter if ord(letter) > 127 else quote(letter, safe="@ ") for letter in text)
    if len(name.encode()) <= LONGEST:
        return name
    beginning = name.encode()[: LONGEST - _DIGITS - 1].decode(errors="ignore")
    return f"{beginning}~{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


def exists(path: Path) -> bool:
    """Whether there is something, which there is not where its name is too long for a file system."""
    try:
        return path.exists()
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if not os.path.lexists(path):  # nor can it be, where the name is too long
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
