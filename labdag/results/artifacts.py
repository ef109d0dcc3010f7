"""What a stage shows of itself in the UI: how far it has come, and the pictures that it made."""

from __future__ import annotations

import base64
import contextvars
import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from labdag.files import exists
from labdag.orchestration import server
from labdag.pipeline.graph import Stage

SECONDS = 1.0  # between two looks of the UI's at how far a stage has come
LAST_SECONDS = 10.0  # that a stage may wait, at its end, for the last word on it to arrive
MOST_BYTES = 4_000_000  # of pictures with a stage; the UI loads them all at once
LONGEST_KEY = 100  # characters of a stage's name in an artifact's key
PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".svg": "svg+xml", ".webp": "webp"}


class Progress:
    """How far a stage has come, as the lines that it prints tell it: a progress artifact of its task.

    Lines are those that the pattern of `meta.progress` is found in. They are sent by a thread of their own: the stage
    never waits for Prefect's server.

    Args:
        stage: whose lines they are.
        log: takes each line.
    """

    def __init__(self, stage: Stage, log: Callable[[str], None]) -> None:
        self._stage, self._log = stage, log
        self._pattern = re.compile(stage.meta.progress) if stage.meta.progress else None
        self._news = threading.Condition()
        self._latest: tuple[float, str] | None = None
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Callable[[str], None]:
        return self._take

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._is_over.set()
        with self._news:
            self._news.notify()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)

    def _take(self, line: str) -> None:
        self._log(line)
        found = self._pattern.search(line) if self._pattern else None
        if found is None:
            return
        try:
            done, total = float(found["done"]), float(found["total"])
        except (TypeError, ValueError):  # a group that is no number, or was not in the line
            return
        with self._news:
            self._latest = (min(100.0, 100 * done / total) if total > 0 else 0.0, line)
            self._news.notify()
        if self._thread is None:
            # With the task's context, Prefect knows whose artifact it is.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._send,), name=f"progress of {self._stage.name}", daemon=True
            )
            self._thread.start()

    def _send(self) -> None:
        key = f"progress-{slug(self._stage.name)}"
        artifact: Any = None  # its id
        while True:
            with self._news:
                self._news.wait_for(lambda: self._latest is not None or self._is_over.is_set())
                latest, self._latest = self._latest, None
            if latest is None:
                return
            percent, line = latest
            with server.lenient():
                if artifact is None:
                    artifact = create_progress_artifact(progress=percent, key=key, description=line)
                else:
                    update_progress_artifact(artifact, progress=percent, description=line)
            self._is_over.wait(SECONDS)


def show_pictures(stage: Stage, root: Path) -> None:
    """Leave the pictures that a stage declares as plots with its task, as far as they are not too large."""
    paths = [path for plot in stage.plots for path in _pictures(root / plot)]
    texts: list[str] = []
    size = 0
    for path in paths:
        data = path.read_bytes()
        size += len(data)
        if size > MOST_BYTES:
            texts.append(f"{len(paths) - len(texts)} more are too large to be shown here.")
            break
        code = base64.b64encode(data).decode()
        name = path.relative_to(root).as_posix()
        texts.append(f"### {path.stem}\n\n![{name}](data:image/{PICTURES[path.suffix.lower()]};base64,{code})")
    if texts and server.answers():
        with server.lenient():
            create_markdown_artifact("\n\n".join(texts), f"plots-{slug(stage.name)}", f"Pictures of {stage.name}")


def _pictures(path: Path) -> list[Path]:
    if not exists(path):
        return []
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [each for each in found if each.suffix.lower() in PICTURES and each.is_file()]


def slug(name: str) -> str:
    """A name as the key of an artifact: of small letters, digits and dashes, and with a digest for other letters."""
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_KEY]
    if name.isascii() and len(name) <= LONGEST_KEY:
        return key
    return f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".removeprefix("-")
