"""The process of a Prefect server, whether it lasts or not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import uvicorn

from labdag.orchestration import database


class Server(uvicorn.Server):
    """One that brings its database up to its version while no other server does the same."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, with the database ready."""
        with database.starting(Path(os.environ["PREFECT_HOME"])):
            await super().startup(sockets)
