"""Prefect's server as `labdag up` has it: `python -m labdag.orchestration.local_server HOST PORT [OPTION...]`.

It does what `prefect server start` does, but asks for a password, and answers no web page except its own UI.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import (
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    PREFECT_SERVER_CSRF_PROTECTION_ENABLED,
    get_current_settings,
    temporary_settings,
)

from labdag.orchestration import password
from labdag.orchestration.guard import LOOPBACK_NAMES, Guard, is_loopback
from labdag.orchestration.replay import Replay
from labdag.orchestration.serving import Server


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    # In a file, for other accounts can see the arguments. A password of the user's own settings goes first.
    parser.add_argument("--password-folder", type=Path, help="without it, no password is asked for")
    parser.add_argument("--fd", type=int, help="of a socket that listens there already")
    parser.add_argument("--public-url", action="append", default=[])
    options = parser.parse_args()

    is_open = not is_loopback(options.host)
    names = {*LOOPBACK_NAMES, options.host, *(urlsplit(url).hostname or "" for url in options.public_url)}
    if is_open:
        names.add(socket.gethostname())
    origins = [f"http://{_in_url(name)}:{options.port}" for name in sorted({*LOOPBACK_NAMES, options.host})]
    own = password.read(options.password_folder) if options.password_folder else None
    with temporary_settings(
        updates={PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join([*origins, *options.public_url])},
        set_defaults={PREFECT_SERVER_CSRF_PROTECTION_ENABLED: True}
        | ({PREFECT_SERVER_API_AUTH_STRING: own} if own else {}),
        restore_defaults=() if own else (PREFECT_SERVER_API_AUTH_STRING,),
    ):
        settings = get_current_settings().server
        app = create_app(final=True)
        config = uvicorn.Config(
            Guard(Replay(app), names=names, any_address=is_open, origins=options.public_url),
            host=options.host,
            port=options.port,
            timeout_keep_alive=settings.api.keepalive_timeout,
            ws_ping_interval=settings.api.websocket_ping_interval,
            ws_ping_timeout=settings.api.websocket_ping_timeout,
            log_level=settings.logging_level.lower(),
        )
        server = Server(config)
        server.run(None if options.fd is None else [socket.socket(fileno=options.fd)])
        if not server.started:
            sys.exit(1)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
