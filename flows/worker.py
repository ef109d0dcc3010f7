"""The worker that `labdag up` starts: `python -m flows.worker ROOT POOL QUEUE...`.

It is Prefect's process worker, but runs what this project has deployed and nothing else. Prefect's own runs whatever
stands on the server: anyone who may write there could give a deployment a shell command as a pull step, or the work
pool another command.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow, load_flow_from_entrypoint, load_flow_from_flow_run
from prefect.states import Failed
from prefect.workers import process
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows import services
from flows.deployed import Deployed, Record

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

CHECK = "stages/params.py"  # of a project of labs
FROM_WORKSPACE = ("flows.reproduce.reproduce", "flows.sweep.sweep")  # flows that take params.yaml as it lies there
OWN_FLOWS = (*FROM_WORKSPACE, "flows.retrain.retrain")


class ProjectWorker(ProcessWorker):
    """A process worker that refuses what its project has not deployed.

    Args:
        root: of the project.
        pool: the name of the work pool.
        queues: the names of the work queues to poll.
    """

    def __init__(self, root: Path, pool: str, queues: list[str]) -> None:
        super().__init__(pool, queues)
        self._root = root
        self._record = Record(services.place(root))

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "labdag"  # Prefect finds its own process worker as `process`, as before

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
        deployed = self._record.find(str(flow_run.deployment_id))
        deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
        if deployed is None:
            reason = self._foreign(deployment)
        else:
            reason = refusal(flow_run, deployment, deployed, self._root) or await self._fault(deployed)
        if deployed is None or reason:
            reason = f"Refused: {reason}"
            self.get_flow_run_logger(flow_run).error(reason)
            await self.client.set_flow_run_state(flow_run.id, Failed(message=reason), force=True)
            if task_status is not None:
                task_status.started(0)
            return ProcessWorkerResult(status_code=0, identifier="refused")
        command = [sys.executable, "-P", "-m", "flows.flow_run", str(services.place(self._root)), deployed.id]
        configuration = await ProcessJobConfiguration.from_template_and_values(
            base_job_template=self.get_default_base_job_template(),
            values={"command": shlex.join(command), "working_dir": str(self._root)} | deployed.job_variables,
            client=self.client,
        )
        configuration.prepare_for_flow_run(
            flow_run, deployment, work_pool=self.work_pool, worker_name=self.name, worker_id=self.backend_id
        )
        return await super().run(flow_run, configuration, task_status)

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
        command = [sys.executable, "-m", "stages.params", "check"]  # another process: flows/ does not import stages/
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
    root, pool, queues = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
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
        asyncio.run(ProjectWorker(root, pool, queues).start(printer=partial(print, flush=True)))


if __name__ == "__main__":
    main()
