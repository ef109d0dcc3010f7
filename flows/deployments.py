"""The flows as deployments: what prefect.yaml says, the work pool and the automation that go with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import AutomationCore, EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import retrain, server
from flows.graph import GraphError

FILE = "prefect.yaml"
POOL = "labdag"
UNENDED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
SOONEST = 10.0  # seconds without a sign of life that Prefect lets an automation act on
AUTOMATION = "labdag: end runs that died"
# What is deployed where there is no prefect.yaml.
DEFAULT = """\
name: labdag
deployments:
  - name: pipeline
    entrypoint: flows.reproduce.reproduce
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
    """

    name: str
    flow: Flow[Any, Any]
    entry: Mapping[str, Any]


def read(root: Path) -> list[Deployment]:
    """The deployments of a project: what its prefect.yaml says, or one for its pipeline if it has none.

    Raises:
        GraphError: the file is not as it should be.
    """
    path = root / FILE
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else DEFAULT
        declared = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise GraphError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    entries = declared.get("deployments") if isinstance(declared, dict) else None
    if not isinstance(entries, list) or not entries:
        raise GraphError(f"{path} has no deployments: list some under `deployments:`, each with a name and entrypoint.")
    return [_deployment(entry, f"{FILE}: deployments[{number}]") for number, entry in enumerate(entries)]


def _deployment(entry: Any, where: str) -> Deployment:
    for key in ("name", "entrypoint"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise GraphError(f"{where}.{key} is missing.")
    module, _, name = entry["entrypoint"].rpartition(".")
    try:
        found = getattr(import_module(module), name, None) if module else None
    except ImportError:
        found = None
    if not isinstance(found, Flow):
        raise GraphError(
            f"{where}.entrypoint is '{entry['entrypoint']}', but should be a module and the flow in it, such as "
            "flows.reproduce.reproduce."
        )
    return Deployment(f"{found.name}/{entry['name']}", found, entry)


def deploy(root: Path, api: str, place: Path) -> None:
    """Create the work pool, the deployments and the automation on a server, or bring them up to date.

    Args:
        root: of the project.
        api: the server's address.
        place: a folder for what is needed for it.

    Raises:
        GraphError: Prefect refuses a deployment.
    """
    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)
    path = root / FILE
    if not path.exists():
        path = place / FILE
        path.write_text(DEFAULT, encoding="utf-8")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip(" │╭╰─╮╯")]
        raise GraphError(f"{path} can't be deployed to {api}: {said[-1] if said else 'Prefect did not say why'}")
    end_dead_runs()


def end_dead_runs() -> None:
    """See to it that the server ends runs of which it hears no more: an automation on their signs of life."""
    ends = ["Completed", "Failed", "Cancelled", "Crashed", *retrain.Ending]  # a state's event has the state's name
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


def end_orphans() -> int:
    """Mark the pool's runs that have not ended as Crashed, for when no worker of it is alive; tells how many."""
    unended = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNENDED)))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=unended, work_pool_filter=pool)
        for run in found:
            client.set_flow_run_state(run.id, Crashed(message="its worker had ended"))
    return len(found)


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
            schedules=[
                CronSchedule(cron=schedule["cron"], timezone=schedule.get("timezone"))
                for schedule in entry.get("schedules", ())
            ],
            concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
