"""The state of a training on disk: a killed one goes on from it, and ends with the bytes of one that was not killed.

A checkpoint lies outside the outputs, in `.checkpoints/<lab>/<key>.pt`, and is gone once the training has succeeded.
The key is a hash of all that decides the result, so a training whose inputs were changed starts afresh.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stages.program.files import new_file
from stages.program.options import UserError

ROOT = Path(".checkpoints")
MINUTES = 5.0  # between two checkpoints within an epoch
DIGEST_BYTES = 32  # at the beginning of the file: torch itself does not see that a bit has changed


class Checkpoint:
    """The state of one training, saved now and then.

    Args:
        lab: the lab's name.
        key: hash of all inputs of the training.

    Attributes:
        path: where the state lies.

    Raises:
        UserError: LABDAG_CHECKPOINT_MINUTES is no positive number.
    """

    def __init__(self, lab: str, key: str) -> None:
        self.path = ROOT / lab / f"{key}.pt"
        self._seconds = 60 * _minutes()
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last one was saved so long ago that the next should not wait for the epoch's end."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Put `state` in the place of the last one, at once; where the disk has no room, say so and keep the last."""
        try:
            # By way of memory: torch tells of a full disk in other words.
            content = io.BytesIO()
            torch.save(dict(state), content)
            with new_file(self.path) as file:
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.write(content.getbuffer())
        except OSError as error:
            print(f"no checkpoint saved ({error.strerror}); a killed training would repeat more", flush=True)
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state saved last, on the CPU; None where there is none for these inputs, or it is damaged."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            digest = file.read(DIGEST_BYTES)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                print(f"the checkpoint {self.path} is damaged; starting afresh", flush=True)
                return None
            file.seek(DIGEST_BYTES)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state

    def clear(self) -> None:
        """Remove all checkpoints of the lab."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def key(values: Mapping[str, Any], files: Iterable[Path], device: torch.device) -> str:
    """Hash of all that decides the result of a training, hexadecimal.

    Args:
        values: options, as JSON has them.
        files: what is read, whole.
        device: what computes; its kind, torch's version and the loaded code of stages/ are part of the key too.
    """
    machine = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    versions = [version(package) for package in ("torch", "torchvision")]
    digest = hashlib.sha256(json.dumps([values, versions, machine], sort_keys=True).encode())
    for path in sorted({*_code(), *files}):
        with path.open("rb") as file:
            digest.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:32]


def _code() -> Iterator[Path]:
    """The files of all modules of stages/ that are loaded, that of the program itself, too."""
    stages = Path(__file__).resolve().parents[1]
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or "").resolve()
        if stages in path.parents:
            yield path


def _minutes() -> float:
    text = os.environ.get("LABDAG_CHECKPOINT_MINUTES", str(MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise UserError(f"LABDAG_CHECKPOINT_MINUTES is {text!r}, but should be a number of minutes, such as 5.")
    return minutes
