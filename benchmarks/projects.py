"""What benchmarks work with: a copy of this project, and a Prefect server of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


def copy_project(folder: Path) -> None:
    """Copy what git tracks here into a git repository of its own."""
    listed = run(ROOT, "git", "ls-files", "-z")
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")


def copy_with_labs(folder: Path, labs: list[str]) -> list[str]:
    """Make `folder` a copy of the project with these labs only; gives the names of their datasets."""
    copy_project(folder)
    params = YAML().load(folder / "params.yaml")
    if unknown := [lab for lab in labs if lab not in params["labs"]]:
        sys.exit(f"there is no lab '{unknown[0]}'")
    params["labs"] = {lab: params["labs"][lab] for lab in labs}
    params["compare"] = {}
    params.pop("retrain", None)  # gates of labs that are not among them
    YAML().dump(params, folder / "params.yaml")
    run(folder, sys.executable, "-m", "stages.params", "dag")
    return list(dict.fromkeys(str(params["labs"][lab]["dataset"]) for lab in labs))


def run(folder: Path, *command: str) -> str:
    """What a command prints, `labdag` and `dvc` being those of this Python; ends the program where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PATH": path})
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def server(home: Path) -> Iterator[str]:
    """The API address of a Prefect server of its own."""
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "1"}
    secret = f"benchmarks:{secrets.token_urlsafe(32)}"
    os.environ |= {"PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_API_AUTH_STRING": secret}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    api = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{api}/health")
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        else:
            sys.exit("Prefect's server did not start within two minutes.")
        yield api
    finally:
        server.terminate()
        server.wait()
