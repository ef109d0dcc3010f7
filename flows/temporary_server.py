"""Prefect's server for the time of a run, without UI: `python -m flows.temporary_server FD PARENT`.

It listens at the socket that it inherits as FD, and ends with the process PARENT, which has started it, however that
ends.
"""

from __future__ import annotations

import gc
import socket
import sys

from flows import supervisor


def main() -> None:
    """Serve until told to end."""
    supervisor.end_with_parent(int(sys.argv[2]))
    gc.disable()  # while all is imported, which takes a third longer with it
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
