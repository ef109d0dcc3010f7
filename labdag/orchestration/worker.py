"""The worker that `labdag up` starts: `python -m labdag.orchestration.worker ROOT POOL DATABASE`.

It is Prefect's process worker, but runs what this project has deployed and nothing else. Prefect's own runs whatever
stands on the server: anyone who may write there could give a deployment a shell command as a pull step, or the work
pool another command.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.flows import Flow, load_flow_from_entrypoint, load_flow_from_flow_run
from prefect.states import Failed
from prefect.workers import process
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from labdag.environment import mark_lent
from labdag.orchestration import services
from labdag.orchestration.deployed import Deployed, Record

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse

DEFAULT_QUEUE = "default"  # where a deployment goes that names no queue
QUEUE_SECONDS = 30.0  # between two looks at whether all queues are there
CHANGE_SECONDS = 0.2  # between two looks at whether `labdag up` is at work
CHECK = "stages/params.py"  # of a project of labs
# Flows that take params.yaml as it is in the workspace.
FROM_WORKSPACE = (
    "labdag.flows.reproduce.reproduce",
    "labdag.flows.sweep.sweep",
)
OWN_FLOWS = (*FROM_WORKSPACE, "labdag.flows.retrain.retrain")


class ProjectWorker(ProcessWorker):
    """A process worker that refuses what its project has not deployed.

    Args:
        root: of the project.
        pool: the name of the work pool.
        database: a digest of the address of the server's database; empty for one that is the project's alone.
    """

    def __init__(self, root: Path, pool: str, database: str) -> None:
        super().__init__(pool)
        self._root, self._database = root, database
        self._record = Record(services.place(root))
        self._checked, self._check_at = set[str](), 0.0  # queues that were seen, and when to look at them again
        self._left = set[str]()  # deployments of which it has told that it leaves them to others

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "labdag"  # Prefect finds its own process worker as `process`, as before

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """Look into the queues in which the project has something by now, and where somebody may have put more."""
        queues = {each.queue for each in self._record.of(self._database).values() if each.queue}
        self._work_queues = queues if self._database else queues | {DEFAULT_QUEUE}
        if not self._work_queues:  # none would mean all
            return []
        found = await super()._get_scheduled_flow_runs()
        if not found and (self._checked != self._work_queues or time.monotonic() > self._check_at):
            await self._make_queues()
            self._checked, self._check_at = self._work_queues, time.monotonic() + QUEUE_SECONDS
        return [each for each in found if not self._is_for_others(each.flow_run)]

    async def _make_queues(self) -> None:
        """Make those that are gone: as long as one is, the server answers that there is nothing to do."""
        there = {each.name for each in await self.client.read_work_queues(work_pool_name=self._work_pool_name)}
        for name in sorted(self._work_queues - there):
            with suppress(ObjectAlreadyExists):
                await self.client.create_work_queue(name, work_pool_name=self._work_pool_name)

    def _is_for_others(self, flow_run: FlowRun) -> bool:
        """Whether another project with the same database, whose worker looks into the same queue, has a run."""
        deployment = str(flow_run.deployment_id)
        if not self._database or self._record.find(deployment):
            return False
        if deployment not in self._left:
            self._left.add(deployment)
            print(f"Runs of the deployment {deployment} are left to the project that has deployed it.", flush=True)
        return True

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run of the project's, or set it to Failed and say why.

        Args:
            flow_run: what to run.
            configuration: as the server has it; what is recorded here is taken instead.
            task_status: is told when the process has started.
        """
        flow_run = await self.client.read_flow_run(flow_run.id)  # as it was made: Prefect takes parts out of it
        deployed, deployment, reason = await self._looked_at(flow_run)
        if reason:
            while services.is_changing(self._root):  # it may be deployed anew right now
                await anyio.sleep(CHANGE_SECONDS)
            deployed, deployment, reason = await self._looked_at(flow_run)
        if deployed is not None and not reason:
            reason = await self._fault(deployed)
        if deployed is None or reason:
            reason = f"Refused: {reason}"
            self.get_flow_run_logger(flow_run).error(reason)
            await self.client.set_flow_run_state(flow_run.id, Failed(message=reason), force=True)
            if task_status is not None:
                task_status.started(0)
            return ProcessWorkerResult(status_code=0, identifier="refused")
        command = [
            sys.executable,
            "-P",
            "-m",
            "labdag.orchestration.flow_run",
            str(services.place(self._root)),
            deployed.id,
        ]
        configuration = await ProcessJobConfiguration.from_template_and_values(
            base_job_template=self.get_default_base_job_template(),
            values={"command": shlex.join(command), "working_dir": str(self._root)} | deployed.job_variables,
            client=self.client,
        )
        configuration.prepare_for_flow_run(
            flow_run, deployment, work_pool=self.work_pool, worker_name=self.name, worker_id=self.backend_id
        )
        settings = (name for name in configuration.env if name.startswith("PREFECT") and name not in os.environ)
        mark_lent(configuration.env, settings)  # Prefect puts all that its profile says there, passwords too
        return await super().run(flow_run, configuration, task_status)

    async def _looked_at(self, flow_run: FlowRun) -> tuple[Deployed | None, DeploymentResponse | None, str]:
        """What is recorded of a run's deployment, what the server has of it, and why it is refused, if it is."""
        deployed = self._record.find(str(flow_run.deployment_id))
        deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
        if deployed is None:
            return deployed, deployment, self._foreign(deployment)
        return deployed, deployment, refusal(flow_run, deployment, deployed, self._root)

    def _foreign(self, deployment: DeploymentResponse | None) -> str:
        name = f"the deployment '{deployment.name}'" if deployment else "a run without a deployment"
        return (
            f"{name} was not made by `labdag up` in {self._root}, and its worker runs nothing else. "
            "Declare it in prefect.yaml there, and call `labdag up`."
        )

    async def _fault(self, deployed: Deployed) -> str:
        """What is wrong with the project's params.yaml, if it can check it: DVC puts the names there into commands."""
        if deployed.entrypoint not in FROM_WORKSPACE or not (self._root / CHECK).is_file():
            return ""
        command = [sys.executable, "-m", "stages.params", "check"]  # another process: labdag does not import stages/
        done = await anyio.run_process(command, cwd=self._root, check=False)
        return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def refusal(flow_run: FlowRun, deployment: DeploymentResponse | None, deployed: Deployed, root: Path) -> str:
    """Why a flow run is not what a project has deployed; empty if it is.

    Args:
        flow_run: the flow run.
        deployment: its deployment, as the server has it.
        deployed: what is recorded of the deployment.
        root: of the project.
    """
    if deployment is None or as_recorded(deployment) != deployed:
        return "the deployment was changed on the server after `labdag up`; call `labdag up` to have it as declared."
    if flow_run.job_variables:
        return (
            f"the run has job variables of its own ({', '.join(sorted(flow_run.job_variables))}); "
            "declare them in prefect.yaml, and call `labdag up`."
        )
    elsewhere = flow_run.parameters.get("root")
    if deployed.entrypoint in OWN_FLOWS and elsewhere and Path(str(elsewhere)).resolve() != root.resolve():
        return f"its parameter root is {elsewhere}, but the worker runs the project in {root}."
    return ""


def as_recorded(deployment: DeploymentResponse) -> Deployed:
    """What there is to record of a deployment."""
    return Deployed(
        id=str(deployment.id),
        entrypoint=deployment.entrypoint or "",
        path=deployment.path,
        pull_steps=deployment.pull_steps or [],
        job_variables=deployment.job_variables or {},
    )


def main() -> None:
    """Work until Ctrl-C or `kill`, which end the runs that are at work, too."""
    root, pool, database = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    sys.path.append(str(root))  # for hooks of the project's own flows
    record = Record(services.place(root))

    async def load(flow_run: FlowRun) -> Flow[..., Any]:
        """The flow of a run, for its hooks. Prefect would take the pull steps that stand on the server, in here."""
        deployed = record.find(str(flow_run.deployment_id))
        if deployed is None:
            raise LookupError(f"the deployment {flow_run.deployment_id} is not recorded")
        return load_flow_from_entrypoint(deployed.entrypoint)

    assert vars(process)["load_flow_from_flow_run"] is load_flow_from_flow_run  # else hooks are loaded in another way
    vars(process)["load_flow_from_flow_run"] = load
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with suppress(KeyboardInterrupt):
        asyncio.run(ProjectWorker(root, pool, database).start(printer=partial(print, flush=True)))


if __name__ == "__main__":
    main()
