"""A pytest plugin that runs DVC's own tests with labdag in the place of `Repo.reproduce`, and counts the results.

A test applies if it reproduces something, in a way that labdag has, and does not look at DVC's inside while it does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from labdag.environment import keep_quiet, lend
from labdag.orchestration import temporary_server

INSIDE = "it looks at DVC's inside, which is in another process"
UNKNOWN = {
    "dry": "labdag has `plan` for --dry",
    "interactive": "labdag has no --interactive",
    "recursive": "labdag has no --recursive",
    "pipeline": "labdag has no --pipeline",
}
TAKEN = ("force", "pull", "allow_missing", "force_downstream", "no_commit")
_reasons: Counter[str] = Counter()
_called: set[str] = set()
_current = ""
_home = ""


def pytest_configure() -> None:
    """Start a Prefect server, before Prefect is loaded, and take the place of DVC's function."""
    global _home
    keep_quiet(os.environ)
    _home = tempfile.mkdtemp(prefix="labdag-conformance-")
    os.environ["PREFECT_HOME"] = _home
    server = temporary_server.started(Path(_home))
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            httpx.get(f"{server.api}/health", trust_env=False).raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    lend(os.environ, PREFECT_API_URL=server.api, PREFECT_API_AUTH_STRING=server.password, PREFECT_LOGGING_LEVEL="ERROR")

    from dvc.repo import Repo

    Repo.reproduce = reproduce


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_home, ignore_errors=True)


def reproduce(
    self: Any,
    targets: Any = None,
    all_pipelines: bool = False,
    downstream: bool = False,
    single_item: bool = False,
    glob: bool = False,
    on_error: str = "fail",
    run_cache: bool = True,
    **options: Any,
) -> list[Any]:
    """What `dvc.repo.Repo.reproduce` does, done by labdag; gives the stages that were not as before.

    Raises:
        dvc.exceptions.ReproductionError: a stage failed.
    """
    from dvc.dvcfile import PROJECT_FILE
    from dvc.exceptions import ReproductionError
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
    from dvc.utils import relpath

    from labdag.execution.outcome import StageState
    from labdag.flows.reproduce import StageFailedError
    from labdag.flows.reproduce import reproduce as by_labdag
    from labdag.pipeline import graph
    from labdag.pipeline import targets as named

    _called.add(_current)
    for option, reason in UNKNOWN.items():
        if options.get(option):
            pytest.skip(reason)
    if on_error == "ignore":
        pytest.skip("labdag has no --ignore-errors")
    # DVC's own words on a target that there is not, or a pipeline that is none.
    wanted = [targets] if isinstance(targets, str) else list(targets or [PROJECT_FILE])
    stages = [] if all_pipelines else collect_stages(self, wanted, glob=glob)
    order = (
        stages if single_item else plan_repro(get_active_graph(self.index.graph), stages or None, downstream=downstream)
    )
    root = Path(self.root_dir)
    folder = relpath(Path.cwd(), self.root_dir)
    chosen = named.rooted(graph.load(root), [] if all_pipelines else wanted, "" if folder == "." else folder)
    failure = None
    try:
        done = by_labdag(
            targets=chosen,
            jobs=1,
            keep_going=on_error == "keep-going",
            downstream=downstream,
            single_item=single_item,
            no_run_cache=not run_cache,
            root=str(root),
            **{name: bool(options.get(name)) for name in TAKEN},
        )
    except StageFailedError as error:
        done, failure = error.reproduction, error
    self._reset()
    if failure is not None:
        bad = [name for name, each in done.outcomes.items() if each.ending in (StageState.FAILED, StageState.TAINTED)]
        raise ReproductionError(f"failed to reproduce {', '.join(map(repr, bad))}") from failure
    now = {graph.address(node): node for node in self.index.stages}
    names = [graph.address(node) for node in order]
    return [now[name] for name in names if done.outcomes[name].ending is not StageState.UNCHANGED]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Know which test is at work."""
    global _current
    _current = item.nodeid
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Record whether each test applies, and what became of it."""
    report = (yield).get_result()
    if report.when != "call" or item.nodeid not in _called:
        return
    if report.skipped:
        _reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    elif report.failed and "mocker" in getattr(item, "fixturenames", ()):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {INSIDE}")
        _reasons[INSIDE] += 1
    else:
        _reasons["passed" if report.passed else "failed"] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count."""
    passed, failed = _reasons.pop("passed", 0), _reasons.pop("failed", 0)
    tell = terminalreporter.write_line
    tell(f"\n{len(_called)} tests reproduce something; {passed + failed} apply, {passed} of these pass.")
    for reason, count in _reasons.most_common():
        tell(f"  {count} do not apply: {reason}")
