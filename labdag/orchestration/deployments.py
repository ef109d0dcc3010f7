"""The flows as deployments: what prefect.yaml says, the work pool and the automation that go with it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.events import AutomationCore, EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from labdag.errors import UserError
from labdag.orchestration import server
from labdag.orchestration.deployed import Deployed, Record
from labdag.orchestration.states import RetrainingState
from labdag.orchestration.worker import as_recorded

FILE = "prefect.yaml"
POOL = "labdag"
_TRACEBACK = "Traceback (most recent call last):\n"
# The line of a traceback that names the exception.
_RAISED = re.compile(r"^(\w+(?:\.\w+)*): (.*\S)", re.MULTILINE)
KINDS = ("cron", "interval", "rrule")  # of schedules
_UNENDED = FlowRunFilterState(
    type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
)
SOONEST = 10.0  # seconds without a sign of life that Prefect lets an automation act on
AUTOMATION = "labdag: end runs that died"
# What is deployed where there is no prefect.yaml.
DEFAULT = """\
name: labdag
deployments:
  - name: pipeline
    entrypoint: labdag.flows.reproduce.reproduce
    description: Bring stages of the pipeline up to date; with no targets, all of them.
    tags: [labdag]
    work_pool: {name: labdag}
"""


@dataclass(frozen=True)
class Deployment:
    """An entry of prefect.yaml.

    Attributes:
        name: its name on the server, with the flow's (`retrain/lenet_digits`).
        flow: what it runs.
        entry: all that stands there.
        schedules: when it runs by itself.
    """

    name: str
    flow: Flow[Any, Any]
    entry: Mapping[str, Any]
    schedules: tuple[Schedule, ...] = ()

    @property
    def pool(self) -> str | None:
        """The name of its work pool."""
        return self._work_pool().get("name")

    @property
    def queue(self) -> str | None:
        """The name of its work queue, if the file names one."""
        return self._work_pool().get("work_queue_name")

    def _work_pool(self) -> Mapping[str, Any]:
        found = self.entry.get("work_pool")
        return found if isinstance(found, dict) else {}

    def times(self) -> list[str]:
        """Its schedules, as a person would say them."""
        told = [(s.cron or s.rrule or f"every {s.interval}", s.timezone or "UTC", s.active) for s in self.schedules]
        return [f"{when} {zone}" + ("" if active else ", not active") for when, zone, active in told]


def read(root: Path) -> list[Deployment]:
    """The deployments of a project: what its prefect.yaml says, or one for its pipeline if it has none.

    Raises:
        UserError: the file is not as it should be.
    """
    path = root / FILE
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else DEFAULT
        declared = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    entries = declared.get("deployments") if isinstance(declared, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no deployments: list some under `deployments:`, each with a name and entrypoint.")
    return [_deployment(entry, root, f"{FILE}: deployments[{number}]") for number, entry in enumerate(entries)]


def _deployment(entry: Any, root: Path, where: str) -> Deployment:
    for key in ("name", "entrypoint"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise UserError(f"{where}.{key} is missing.")
    found, why = _flow(entry["entrypoint"], root)
    if found is None:
        raise UserError(
            f"{where}.entrypoint is '{entry['entrypoint']}', but should be a module and the flow in it, such as "
            f"labdag.flows.reproduce.reproduce, or a file and the flow in it, such as night.py:all_labs.{why}"
        )
    schedules = entry.get("schedules") or []
    if not isinstance(schedules, list):
        raise UserError(f"{where}.schedules is no list.")
    return Deployment(
        f"{found.name}/{entry['name']}",
        found,
        entry,
        tuple(_schedule(each, f"{where}.schedules[{number}]") for number, each in enumerate(schedules)),
    )


def _flow(entrypoint: str, root: Path) -> tuple[Flow[Any, Any] | None, str]:
    """The flow that an entrypoint names, or why there is none, as another sentence."""
    if str(root) not in sys.path:
        sys.path.append(str(root))  # as the worker and Prefect do
    path, _, name = entrypoint.rpartition(":")
    module, _, flow = entrypoint.rpartition(".")
    try:
        found = load_flow_from_entrypoint(f"{root / path}:{name}") if path else getattr(import_module(module), flow)
    except Exception as error:  # whatever the module does
        return None, f" It can't be loaded: {error}." if path or module else ""
    return (found, "") if isinstance(found, Flow) else (None, "")


def _schedule(entry: Any, where: str) -> Schedule:
    if not isinstance(entry, dict) or not any(entry.get(kind) for kind in KINDS):
        raise UserError(f"{where} has none of {', '.join(KINDS)}; let it have one, such as `cron: 0 3 * * *`.")
    options = {key: value for key, value in entry.items() if value is not None and key != "replaces"}
    if isinstance(options.get("interval"), int | float):
        options["interval"] = timedelta(seconds=options["interval"])
    try:
        return Schedule(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def deploy(root: Path, api: str, database: str, place: Path, declared: list[Deployment]) -> list[str]:
    """Create the work pool, the deployments and the automation on a server, or bring them up to date.

    What was deployed so before and is not declared any more is deleted.

    Args:
        root: of the project.
        api: the server's address.
        database: a sign of the server's database.
        place: a folder for what is needed for it.
        declared: as `read` tells it.

    Returns:
        The names of what the project has deployed there, this time or before.

    Raises:
        UserError: Prefect refuses a deployment, or another project has one of that name on the server.
    """
    names = [each.name for each in declared]
    record = Record(place)
    before = record.of(database)
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                if other := _other_project(client.read_deployment_by_name(name), root):
                    raise UserError(
                        f"The server at {api} has a deployment {name} already, of the project in {other}; give this "
                        f"one another name in {FILE}, or have `labdag up` take another database."
                    )
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)
        record.write(database, before | {name: Deployed() for name in names if name not in before})
        path = root / FILE
        if not path.exists():
            path = place / FILE
            path.write_text(DEFAULT, encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"{path} can't be deployed to {api}: {_cause(done.stdout, done.stderr)}")
        deployed = {}
        for each in declared:
            known = client.read_deployment_by_name(each.name)
            queue = (each.queue or queue_of(root)) if each.pool == POOL else ""
            if queue and each.queue is None:
                client.update_deployment(known.id, DeploymentUpdate(work_pool_name=POOL, work_queue_name=queue))
            deployed[each.name] = replace(as_recorded(known), queue=queue)
        for name in sorted({*before} - {*names}):
            with suppress(ObjectNotFound):
                known = client.read_deployment_by_name(name)
                if not _other_project(known, root):
                    client.delete_deployment(known.id)
    record.write(database, deployed)
    end_dead_runs()
    return sorted({*before, *names})


def _cause(output: str, errors: str) -> str:
    """Why `prefect deploy` failed: the last exception of its traceback, and the first one, which led to it.

    Args:
        output: of the command, in which a failure that Prefect expects ends in a sentence.
        errors: what it wrote to its standard error.
    """
    raised = [
        f"{found[1].rpartition('.')[2]}: {found[2]}" for found in _RAISED.finditer(errors.partition(_TRACEBACK)[2])
    ]
    if raised:
        return ", for ".join(dict.fromkeys([raised[-1], raised[0]]))
    lines = [line.strip(" │╭╰─╮╯\t") for line in (errors + output).splitlines()]
    lines = [line for line in lines if line and line != "An exception occurred."]
    return lines[-1] if lines else "Prefect did not say why"


def queue_of(root: Path) -> str:
    """The work queue of a project. Two projects with one database share a work pool, but not their runs."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", root.name)
    return f"{name}-{digest}"


def _other_project(deployment: DeploymentResponse, root: Path) -> Path | None:
    """The other project on this machine that a deployment belongs to, if it does."""
    for step in deployment.pull_steps or ():
        for name, options in step.items():
            if name.endswith(".set_working_directory"):
                folder = Path(options["directory"])
                return folder if folder != root and folder.is_dir() else None
    return None


def end_dead_runs() -> None:
    """See to it that the server ends runs of which it hears no more: an automation on their signs of life."""
    ends = ["Completed", "Failed", "Cancelled", "Crashed", *RetrainingState]  # a state's event has the state's name
    wanted = AutomationCore(
        name=AUTOMATION,
        description="A run that gives no sign of life any more, and has not ended, is marked Crashed.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={server.HEARTBEAT},
            expect={server.HEARTBEAT, *(f"prefect.flow-run.{name}" for name in ends)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=max(SOONEST, 3 * server.heartbeat_seconds())),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="it gave no sign of life any more")],
    )
    with get_client(sync_client=True) as client:
        for known in client.read_automations_by_name(AUTOMATION):
            client.delete_automation(known.id)
        client.create_automation(wanted)


def end_orphans(root: Path, names: list[str]) -> int:
    """Mark unended runs of the project's deployments as Crashed, for when its worker has ended; tells how many."""
    count = 0
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                known = client.read_deployment_by_name(name)
                unended = FlowRunFilter(state=_UNENDED, deployment_id=FlowRunFilterDeploymentId(any_=[known.id]))
                if _other_project(known, root):
                    continue
                for run in client.read_flow_runs(flow_run_filter=unended):
                    client.set_flow_run_state(run.id, Crashed(message="its worker had ended"))
                    count += 1
    return count


def served(found: list[Deployment]) -> Iterator[RunnerDeployment]:
    """The deployments for `prefect.serve`, which needs no work pool."""
    for each in found:
        entry = each.entry
        limit = entry.get("concurrency_limit")
        yield RunnerDeployment.from_flow(
            each.flow,
            name=entry["name"],
            description=entry.get("description"),
            tags=entry.get("tags"),
            parameters=entry.get("parameters"),
            schedules=list(each.schedules),
            concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
