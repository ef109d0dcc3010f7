"""The process of a flow run that the worker starts: `python -m labdag.orchestration.flow_run RECORD DEPLOYMENT`.

It does what Prefect's own worker does, with one difference: what is run is what `labdag up` has recorded of the
deployment in the folder RECORD, not what the server says of it at this moment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from labdag.orchestration.deployed import Record

FOLDER_STEP = "prefect.deployments.steps.set_working_directory"


def main() -> None:
    """Take the pull steps, then become Prefect's engine, which runs the flow."""
    deployed = Record(Path(sys.argv[1])).find(sys.argv[2])
    if deployed is None:
        sys.exit(f"The deployment {sys.argv[2]} is not recorded in {sys.argv[1]} any more.")
    if all([*step] == [FOLDER_STEP] for step in deployed.pull_steps):
        for step in deployed.pull_steps:  # Prefect need not be loaded for this, which takes a second
            os.chdir(step[FOLDER_STEP]["directory"])
    else:
        _pull(deployed.pull_steps)
    environment = os.environ | {"PREFECT__FLOW_ENTRYPOINT": deployed.entrypoint}
    os.execve(sys.executable, [sys.executable, "-m", "prefect.engine"], environment)


def _pull(steps: list[dict[str, Any]]) -> None:
    import asyncio

    from prefect.deployments.steps.core import run_steps
    from prefect.logging.handlers import APILogHandler

    async def pull() -> dict[str, Any]:
        try:
            return await run_steps(steps)
        finally:
            await APILogHandler.aflush()

    if folder := asyncio.run(pull()).get("directory"):
        os.chdir(folder)


if __name__ == "__main__":
    main()
