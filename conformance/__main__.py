"""Run the tests of the installed DVC with labdag in the place of `Repo.reproduce`: `python -m conformance`.

DVC's source archive, of which the tests are a part, comes from the package index, into build/conformance/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

PLACE = Path("build/conformance")
# Of `dvc[tests]`, what the fixtures of these tests import.
NEEDED = (
    "pytest-mock",
    "pytest-docker",
    "pytest-test-utils",
    "dvc-ssh",
    "sshfs",
    "asyncssh",
    "bcrypt",
    "mock-ssh-server",
    "dvc-s3",
    "s3fs",
)
NEEDED_WHOLE = ("aiobotocore",)  # with all that it needs
TESTS = (
    "func/repro",
    "func/test_run_cache.py",
    "func/test_run.py",
    "func/test_dvcfile.py",
    "func/test_lockfile.py",
    "func/test_dataset.py",
    "func/test_stage.py",
    "func/test_commit.py",
)


def main() -> int:
    """Fetch what is missing, run the tests, and give pytest's exit code: 0 if all pass that apply."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("pytest", nargs="*", help="options for pytest, such as -k NAME, after --")
    options = parser.parse_args()
    folder = PLACE / f"dvc-{version('dvc')}"
    if not (folder / "tests").is_dir():
        fetch(folder)
    if not (site := PLACE / "site").is_dir():
        pip("install", "--quiet", "--no-deps", "--target", str(site), *NEEDED)
        pip("install", "--quiet", "--target", str(site), *NEEDED_WHOLE)
    root = Path(__file__).parents[1]
    path = [str(root), str(site.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "--rootdir=.",
            "-p",
            "conformance.plugin",
        ),
        *("-p", "no:cacheprovider", "--disable-warnings", "--tb=short", *options.pytest),
        *(f"tests/{name}" for name in TESTS),
    ]
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}).returncode


def fetch(folder: Path) -> None:
    """Take the tests out of the source archive of the installed DVC."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted = f"dvc=={version('dvc')}"
    pip("download", "--quiet", "--no-deps", "--no-binary", "dvc", "--dest", str(PLACE), wanted)
    with tarfile.open(PLACE / f"{folder.name}.tar.gz") as archive:
        members = [each for each in archive.getmembers() if each.name.startswith(f"{folder.name}/tests/")]
        archive.extractall(PLACE, members, filter="data")


def pip(*arguments: str) -> None:
    """Run pip.

    Raises:
        SystemExit: it failed, and has said why.
    """
    if subprocess.run([sys.executable, "-m", "pip", *arguments]).returncode:
        sys.exit("pip could not fetch what the tests need; is the package index within reach?")


if __name__ == "__main__":
    sys.exit(main())
