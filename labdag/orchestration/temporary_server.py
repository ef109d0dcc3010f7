"""Prefect's server for the time of a run, without UI: `python -m labdag.orchestration.temporary_server FD PARENT`.

It listens at the socket that it inherits as FD, and ends with the process PARENT, which has started it, however that
ends; at once where Prefect's settings name another server. It takes seconds to load, as Prefect's client does, so it is
started before that: this module imports nothing of Prefect for whoever starts it.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from labdag import processes
from labdag.orchestration import database, password
from labdag.orchestration.guard import LOOPBACK_NAMES, Guard
from labdag.orchestration.services import home_of

STOP_SECONDS = 5.0  # that it may take to end


@dataclass(frozen=True)
class TemporaryServer:
    """One that this process has started.

    Attributes:
        process: its process.
        api: its API's address.
        password: what it asks for.
    """

    process: subprocess.Popen[bytes]
    api: str
    password: str = field(repr=False)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_started: dict[Path, TemporaryServer] = {}  # by the project's root


def prepare(root: Path) -> None:
    """Begin to start it, for as long as this process lives, unless the environment names another server.

    Args:
        root: of the project whose runs it keeps.

    Raises:
        UserError: Prefect could not read the user's profiles.
    """
    database.check_profiles()
    if not os.environ.get("PREFECT_API_URL"):
        started(root)


def started(root: Path) -> TemporaryServer:
    """The one of this process, started by now if not before.

    Args:
        root: of the project whose runs it keeps, where the server of `labdag up` finds them.
    """
    if root not in _started:
        home = home_of(root)
        if moved := database.put_aside(home):
            print(f"Warning: {moved}", file=sys.stderr)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
            secret = password.new()
            # -P: the user's project may have a package of that name, too. In a session of its own: the terminal sends
            # Ctrl-C to all processes in its foreground, but the run tells the server of its end.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "labdag.orchestration.temporary_server",
                    str(listening.fileno()),
                    str(os.getpid()),
                ],
                env=os.environ
                | database.environment(home)
                | {
                    "PREFECT_UI_ENABLED": "false",
                    "PREFECT_SERVER_API_AUTH_STRING": secret,
                    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
                },
                stdin=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        _started[root] = TemporaryServer(process, f"{origin}/api", secret)
        atexit.register(_started[root].stop)
    return _started[root]


def main() -> None:
    """Serve until told to end."""
    processes.end_with_parent(int(sys.argv[2]))
    gc.disable()  # while all is imported, which takes a third longer with it
    try:
        with redirect_stderr(io.StringIO()):
            from prefect.settings import get_current_settings

            settings = get_current_settings()
    except ValueError:  # whoever has started this comes upon the same, and tells of it
        return
    if settings.api.url:
        return
    import uvicorn
    from prefect.server.api.server import create_app

    from labdag.orchestration.serving import Server

    class QuietServer(Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End, without a word of what is cut off: whoever has started it is at the end, too."""
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            super().handle_exit(sig, frame)

    gc.freeze()  # Prefect looks for garbage once, in all that has been imported
    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    guarded = Guard(app, names=LOOPBACK_NAMES)
    QuietServer(uvicorn.Config(guarded, log_level="error", lifespan="on")).run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
