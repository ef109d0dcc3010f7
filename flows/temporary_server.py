"""Prefect's server for the time of a run, without UI: `python -m flows.temporary_server FD PARENT`.

It listens at the socket that it inherits as FD, and ends with the process PARENT, which has started it, however that
ends.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from types import FrameType

from flows import supervisor


def main() -> None:
    """Serve until told to end."""
    supervisor.end_with_parent(int(sys.argv[2]))
    gc.disable()  # while all is imported, which takes a third longer with it
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End, without a word of what is cut off: whoever has started it is at the end, too."""
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            super().handle_exit(sig, frame)

    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    Server(uvicorn.Config(app, log_level="error", lifespan="on")).run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
