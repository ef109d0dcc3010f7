"""Prefect's server: a temporary one where none is named, and what it is told that Prefect itself does not tell it."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Crashed

from flows.graph import GraphError

LOOK_SECONDS = 1.0  # between two looks at whether somebody has cancelled the run in the UI
HEARTBEAT = "prefect.flow-run.heartbeat"  # the event that is a sign of life
HEARTBEAT_SECONDS = 60.0  # between two of them, where LABDAG_HEARTBEAT_SECONDS says nothing else


_temporary: int | None = None
_address = ""


def heartbeat_seconds() -> float:
    """Seconds between two signs of life of a run: LABDAG_HEARTBEAT_SECONDS, or 60.

    Raises:
        GraphError: it is no positive number.
    """
    text = os.environ.get("LABDAG_HEARTBEAT_SECONDS", str(HEARTBEAT_SECONDS))
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < threading.TIMEOUT_MAX:
            return seconds
    raise GraphError(f"LABDAG_HEARTBEAT_SECONDS is {text!r}, but should be a positive number of seconds.")


def temporary() -> int | None:
    """The process of the temporary server that this one has started, if it has."""
    return _temporary


def address() -> str:
    """Where the server's API is: the one that is named, or the temporary one; empty if there is none yet."""
    return str(get_current_settings().api.url or _address)


def start_temporary() -> None:
    """Where no server is named, start Prefect's temporary one, out of reach of the terminal's Ctrl-C.

    The terminal sends Ctrl-C to all processes in its foreground. The server has to outlive it by a moment, or
    else the run, which tells the server of its end, tries in vain for minutes.
    """
    global _temporary, _address
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    # A process inherits what its parent has blocked. Ctrl-C meanwhile is not lost, only late.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        server.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _temporary = None if server.server_process is None else server.server_process.pid
    _address = server.api_url


@contextmanager
def lasting() -> Iterator[None]:
    """Have a server for this process, and for all that it starts: the temporary one where none is named."""
    start_temporary()
    os.environ["PREFECT_API_URL"] = address()
    with temporary_settings({PREFECT_API_URL: address()}):
        yield


def about(error: RuntimeError) -> str | None:
    """What a user can do about an error, if it says that Prefect's server is out of reach."""
    if "ephemeral Prefect API server" in str(error):
        return (
            "Prefect's temporary server did not start in time; try again, allow it longer "
            "(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS), or start one (`prefect server start`)."
        )
    if "Failed to reach API" in str(error):
        url = get_current_settings().api.url
        return (
            f"No Prefect server answers at {url}. Start one (`prefect server start`), or unset PREFECT_API_URL "
            "to run without."
        )
    return None


def without_own_heartbeats() -> AbstractContextManager[Any]:
    """Have Prefect send no heartbeats of its own: `watched` does, and does not take up to a second to stop."""
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


@contextmanager
def watched(run: UUID, cancel: Callable[[], None]) -> Iterator[None]:
    """Send the server signs of life, and call `cancel` as soon as somebody cancels the flow run there."""
    over = threading.Event()
    seconds = heartbeat_seconds()

    def watch() -> None:
        beat_at = 0.0
        with get_client(sync_client=True) as client:
            while not over.wait(LOOK_SECONDS):
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + seconds
                    emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run}"})
                try:
                    state = client.read_flow_run(run).state
                except Exception:  # the server is busy, or gone for a moment: the run goes on, and so does the watch
                    continue
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancel()
                    return

    # With the run's context, Prefect says of which flow the signs of life are.
    watcher = threading.Thread(
        target=contextvars.copy_context().run, args=(watch,), name="watch the server", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(LOOK_SECONDS)


def mark_crashed(run: UUID, message: str) -> bool:
    """Set a flow run that died without a word, and its task runs, to Crashed; tells whether the server knows it."""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(run)
        except ObjectNotFound:
            return False
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        unended = TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=sorted(set(StateType) - TERMINAL_STATES)))
        )
        for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=unended):
            client.set_task_run_state(task.id, Crashed(message=message), force=True)
        if found.state is None or not found.state.is_final():
            client.set_flow_run_state(run, Crashed(message=message), force=True)
        return True
