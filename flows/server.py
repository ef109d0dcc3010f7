"""Prefect's server: a temporary one where none is named, and what it is told that Prefect itself does not tell it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Crashed

LOOK_SECONDS = 1.0  # between two looks at whether somebody has cancelled the run in the UI


def start_temporary() -> int | None:
    """Where no server is named, start Prefect's temporary one, out of reach of the terminal's Ctrl-C; tells its pid.

    The terminal sends Ctrl-C to all processes in its foreground. The server has to outlive it by a moment, or
    else the run, which tells the server of its end, tries in vain for minutes.
    """
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return None
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    # A process inherits what its parent has blocked. Ctrl-C meanwhile is not lost, only late.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        server.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return None if server.server_process is None else server.server_process.pid


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


@contextmanager
def watched(run: UUID, cancel: Callable[[], None]) -> Iterator[None]:
    """Call `cancel` as soon as somebody cancels the flow run on the server, which tells nobody by itself."""
    over = threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(LOOK_SECONDS):
                try:
                    state = client.read_flow_run(run).state
                except Exception:  # the server is busy, or gone for a moment: the run goes on, and so does the watch
                    continue
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancel()
                    return

    watcher = threading.Thread(target=watch, name="watch for cancellation", daemon=True)
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
        if found.state is None or not found.state.is_final():
            client.set_flow_run_state(run, Crashed(message=message), force=True)
        return True
