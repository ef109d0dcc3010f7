"""Prefect's server: a temporary one where none is named, and what it is told that Prefect itself does not tell it."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import httpx
from prefect import Flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import State
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_logger
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_UI_URL,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Crashed

from labdag.environment import keep_quiet, lend
from labdag.errors import UserError
from labdag.git import find_root
from labdag.orchestration import proxies, services, temporary_server
from labdag.orchestration.temporary_server import TemporaryServer

# Loggers of what Prefect says of each message that it can't deliver.
CHATTER = ("prefect.events.clients", "prefect._internal.concurrency", "EventsWorker")
ANSWER_SECONDS = 10.0  # that the server may take to answer whether it is there
LOOK_SECONDS = 1.0  # between two looks at whether somebody has cancelled the run in the UI
LATE = (
    "Prefect's temporary server did not start in time; try again, allow it longer "
    "(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS), or start one (`prefect server start`)."
)
ENDED = "Prefect's temporary server could not start; what it said of it stands above."
HEARTBEAT = "prefect.flow-run.heartbeat"  # the event that is a sign of life
HEARTBEAT_SECONDS = 60.0  # between two of them, where LABDAG_HEARTBEAT_SECONDS says nothing else


_temporary: TemporaryServer | None = None
_endings: list[Any] = []  # what came of the flows that this process has come to the end of
_is_lost = False
_lasting = ExitStack()


class TemporaryServerError(Exception):
    """The temporary server did not start: why, in a sentence."""


keep_quiet(os.environ)
# Why the named server can't be reached through the proxy that is set for it, if it can't.
no_way = proxies.settle(os.environ, str(get_current_settings().api.url or ""))


def heartbeat_seconds() -> float:
    """Seconds between two signs of life of a run: LABDAG_HEARTBEAT_SECONDS, or 60.

    Raises:
        UserError: it is no positive number.
    """
    text = os.environ.get("LABDAG_HEARTBEAT_SECONDS", str(HEARTBEAT_SECONDS))
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < threading.TIMEOUT_MAX:
            return seconds
    raise UserError(f"LABDAG_HEARTBEAT_SECONDS is {text!r}, but should be a positive number of seconds.")


def address() -> str:
    """Where the server's API is: the one that is named, or the temporary one; empty if there is none yet."""
    return str(get_current_settings().api.url or "")


def named() -> str:
    """Where the API of a server is that was named; empty for a temporary one."""
    return "" if _temporary and address() == _temporary.api else address()


def environment() -> dict[str, str]:
    """The environment of a process that is to talk to the server of this one."""
    env = dict(os.environ)
    settings = get_current_settings().api
    if settings.url and settings.url != os.environ.get("PREFECT_API_URL"):
        secret = settings.auth_string.get_secret_value() if settings.auth_string else ""
        lend(env, PREFECT_API_URL=settings.url, PREFECT_API_AUTH_STRING=secret)
    if not named():
        env["PREFECT_UI_URL"] = ""  # a temporary one has no UI to link to
    return env


def start_temporary() -> None:
    """Where no server is named, have Prefect take its own for this process, and wait until it answers.

    Raises:
        TemporaryServerError: it ended, or took longer than PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.
    """
    if not get_current_settings().api.url:
        _lasting.enter_context(temporary_settings(_of_temporary(_await_temporary(find_root(Path.cwd())))))


def _await_temporary(root: Path) -> TemporaryServer:
    global _temporary
    _temporary = temporary_server.started(root)
    get_logger().info("Starting a temporary server; `labdag up` starts one that stays, with a UI.")
    until = time.monotonic() + get_current_settings().server.ephemeral.startup_timeout_seconds
    # It listens already: the answer comes as soon as it is ready.
    while (left := until - time.monotonic()) > 0 and _temporary.process.poll() is None:
        with suppress(httpx.TransportError):
            httpx.get(f"{_temporary.api}/health", timeout=left, trust_env=False).raise_for_status()
            return _temporary
    raise TemporaryServerError(LATE if _temporary.process.poll() is None else ENDED)


P = ParamSpec("P")
R = TypeVar("R")


class ServedFlow(Flow[P, R]):
    """A flow that talks to the same server from Python as from the command line.

    Called where Prefect's settings name no server, it takes the one that `labdag up` has started for the project, or
    else a temporary one with a password. Prefect's own temporary server would let every web page and account in.
    """

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        """Run the flow, and give what it returns."""
        with _reachable(parameters.get("root")):
            return super().__call__(*args, **parameters)


def served(**options: Any) -> Callable[[Callable[P, R]], ServedFlow[P, R]]:
    """Make a function a ServedFlow, with the options of `prefect.flow`."""
    return lambda function: ServedFlow(function, **options)


@contextmanager
def _reachable(root: str | None) -> Iterator[None]:
    """See to it that there is a server; a flow in a flow takes that of the other."""
    if get_current_settings().api.url or FlowRunContext.get():
        yield
        return
    folder = find_root(Path(root or Path.cwd()))
    up = services.running(folder)
    changes = {PREFECT_API_URL: up.api, **_own_password(folder, up)} if up else _of_temporary(_await_temporary(folder))
    with temporary_settings(changes):
        yield


def _own_password(root: Path, up: services.Services) -> dict[Any, Any]:
    secret = services.password_of(root) if up.password is services.Password.OWN else None
    return {PREFECT_API_AUTH_STRING: secret} if secret else {}


def _of_temporary(found: TemporaryServer) -> dict[Any, Any]:
    """Prefect's settings with which a process talks to a temporary server."""
    # It has no UI: a link to the run would lead nowhere.
    return {PREFECT_API_URL: found.api, PREFECT_API_AUTH_STRING: found.password, PREFECT_UI_URL: ""}


def about(error: Exception) -> str | None:
    """What a user can do about an error, if it says that Prefect's server is out of reach, or lets nobody in."""
    url = address()
    if isinstance(error, TemporaryServerError):
        return str(error)
    if no_way and isinstance(error, ValueError | ImportError) and "proxy" in str(error):
        return no_way
    if "ephemeral Prefect API server" in str(error):
        return LATE
    if "Failed to reach API" in str(error) or isinstance(error, httpx.TransportError):
        return (
            f"No Prefect server answers at {url}. Start one (`labdag up`, `prefect server start`), or unset "
            "PREFECT_API_URL to run without."
        )
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
        return _about_password(url)
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.FORBIDDEN:
        return f"The Prefect server at {url} refuses requests: {error.response.text.strip()}"
    return None


def _about_password(url: str) -> str:
    """What to do where a server does not take the password of this process, or wants one."""
    with suppress(UserError):
        root = find_root(Path.cwd())
        up = services.running(root)
        if up is not None and up.api == url and up.password is services.Password.OWN:
            if services.password_of(root) is None:
                return (
                    f"The Prefect server at {url} wants the password that was in {services.password_file(root)}: "
                    "`labdag down`, then `labdag up` makes another one."
                )
            return (
                f"The Prefect server at {url} does not take the password in {services.password_file(root)}, which was "
                "changed after it was started: `labdag down`, then `labdag up` starts it with that."
            )
    return f"The Prefect server at {url} wants a password: set PREFECT_API_AUTH_STRING=user:password."


def answers() -> bool:
    """Whether the server is there; one that was gone a moment ago is looked for by `watched`."""
    if _is_lost:
        return False
    if not named():
        return True  # a temporary one lives as long as this process
    # Prefect's client knows of certificates and passwords.
    with brief_client() as client:
        return client.api_healthcheck() is None


@contextmanager
def brief_client() -> Iterator[SyncPrefectClient]:
    """A client that asks once, and not for long."""
    settings = {"timeout": ANSWER_SECONDS}
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings=settings) as client,
    ):
        yield client


@contextmanager
def lenient() -> Iterator[None]:
    """Do without what the UI would show, if the server does not take it now: it is not asked again."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), suppress(httpx.HTTPError, PrefectException):
        yield


def show(key: str, table: list[dict[str, Any]], description: str) -> None:
    """Leave a table with the run in the UI, if the server is there."""
    if answers():
        with suppress(httpx.HTTPError, PrefectException):
            create_table_artifact(key=key, table=table, description=description)


def ending(state: State[Any]) -> State[Any]:
    """What a flow returns as its last word, so that it is not lost with the server.

    Where that is gone, it is not waited for.
    """
    _endings.append(state.data)
    if not answers():
        _lose(get_run_logger())
        # In force for Prefect's own last try, too, after the flow's function has returned.
        _lasting.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
    return state


def call(function: Callable[..., Any], **parameters: Any) -> Any:
    """Call a flow: what it returns. That the server is gone when it ends is no reason to fail.

    Raises:
        httpx.TransportError: the server was gone before the flow had begun.
        Exception: what the flow raises.
    """
    before = len(_endings)
    try:
        return function(**parameters)
    except httpx.TransportError:
        if len(_endings) == before:
            raise
        data = _endings[-1]
        if isinstance(data, BaseException):
            raise data from None
        return data
    finally:
        del _endings[before:]


def is_lost() -> bool:
    """Whether the server was gone when it was looked for last."""
    return _is_lost


def without_own_heartbeats() -> AbstractContextManager[Any]:
    """Have Prefect send no heartbeats of its own: `watched` does, and does not take up to a second to stop."""
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


@contextmanager
def watched(run: UUID, cancel: Callable[[], None]) -> Iterator[None]:
    """Send the server signs of life, and call `cancel` as soon as somebody cancels the flow run there."""
    over = threading.Event()
    seconds = heartbeat_seconds()
    logger = get_run_logger()
    logging.raiseExceptions = False  # or each line that can't be sent would be complained of

    def watch() -> None:
        beat_at = 0.0
        with brief_client() as client:
            while not over.wait(LOOK_SECONDS):
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + seconds
                    emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run}"})
                try:
                    state = client.read_flow_run(run).state
                except httpx.TransportError:
                    _lose(logger)
                    continue
                except Exception:  # the server is busy: the run goes on, and so does the watch
                    continue
                _find(logger)
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


def _lose(logger: Any) -> None:
    """Tell once that the server is gone."""
    global _is_lost
    if not _is_lost:
        _is_lost = True
        for name in ("", "prefect", "prefect._internal"):  # those that have handlers of their own
            for handler in logging.getLogger(name).handlers:
                handler.addFilter(_is_news)
        logger.warning(
            "Prefect's server does not answer at %s. The run goes on and is recorded in DVC; the UI lags behind.",
            address(),
        )


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line tells anything but that the server is gone, which it was told already."""
    is_lost = record.exc_info is not None and isinstance(record.exc_info[1], httpx.TransportError)
    is_lost |= record.getMessage() == "Finished in state Running()"  # the state that the server knows last
    return not (_is_lost and (is_lost or record.name.startswith(CHATTER)))


def _find(logger: Any) -> None:
    """Tell that the server is there again, if it was gone."""
    global _is_lost
    if _is_lost:
        _is_lost = False
        logger.warning("Prefect's server answers again; of what happened meanwhile, the UI may lack some.")


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
