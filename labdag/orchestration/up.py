"""What `labdag up` does: the server, the deployments and the worker of a project, each of them started once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labdag.errors import UserError
from labdag.orchestration import database, services
from labdag.orchestration.services import Password, Services, Wanted

if TYPE_CHECKING:
    from labdag.orchestration.deployments import Deployment


def bring_up(root: Path, wanted: Wanted, tell: Callable[[str], None]) -> tuple[Services, list[Deployment]]:
    """Start what is not up yet, and deploy what the project declares.

    Args:
        root: of the project.
        wanted: what the server is to be like.
        tell: takes a line on each thing that is being done.

    Returns:
        What runs, and what is deployed.

    Raises:
        UserError: something can't be started or deployed; what was up before stays up.
    """
    wanted.check()
    database.check_profiles()
    with services.alone(root):
        found = services.running(root)
        if found is not None and not found.is_guarded:
            _end_older(root, found, wanted, tell)
            found = None
        is_new = found is None
        if found is not None:
            services.check_same(found, wanted)
        try:
            if found is None:
                tell("starting the server ...")
                found = services.start_server(root, wanted, tell)
            services.use(root, found)
            from labdag.orchestration import deployments  # loads Prefect, which has to know the server by then

            declared = deployments.read(root)
            names = deployments.deploy(root, found.api, found.database, services.place(root), declared)
            if found.worker is None or not found.worker.alive():
                if count := deployments.end_orphans(root, names):
                    tell(f"{count} runs of a worker that had ended are marked Crashed")
                tell("starting the worker ...")
                found = services.start_worker(root, found, deployments.POOL)
        except BaseException:
            if is_new:  # what was up before, and the runs that it has, stay
                services.stop(root, lambda _: None)
            raise
    return found, declared


def _end_older(root: Path, found: Services, wanted: Wanted, tell: Callable[[str], None]) -> None:
    """End what an older version of labdag has started, which lets everybody in.

    Raises:
        UserError: runs are at work there, or something else is asked for than what was up.
    """
    services.check_same(replace(found, password=Password.NONE), replace(wanted, public_urls=()))
    tell(f"The server at {found.url} was started by an older labdag, and may let any web page and account in.")
    if count := services.at_work(found):
        runs = "1 run that is" if count == 1 else f"{count} runs that are"
        raise UserError(
            f"A new server would cut off {runs} at work. Call `labdag up` again when that has ended; or `labdag down` "
            "first, which ends the runs of its worker."
        )
    services.stop(root, tell)


def report(root: Path, found: Services, declared: list[Deployment]) -> Iterator[str]:
    """Say what is up, and how to reach it.

    Args:
        root: of the project.
        found: what runs.
        declared: what is deployed.
    """
    file = services.password_file(root)
    match found.password:
        case Password.OWN:
            sign_in = f"with what `cat {shlex.quote(str(file))}` prints"
        case Password.SET:
            sign_in = f"with the password of {services.SERVER_AUTH}"
        case _:
            sign_in = "without a password: every account of this machine can run commands as you"
    yield f"UI           {found.near}"
    for url in found.public_urls:
        yield f"             {url}"
    yield f"sign in      {sign_in}"
    for each in declared:
        yield f"deployment   {each.name} ({', '.join(each.times()) or 'on demand'})"
    worker = f", worker process {found.worker.pid}" if found.worker else ""
    yield f"server       process {found.server.pid}{worker}"
    yield f"logs         {services.place(root).relative_to(root)}/"
    yield f"for prefect  export PREFECT_API_URL={found.api}"
    for url in found.public_urls:
        yield f"             export PREFECT_API_URL={url}/api  # on other machines"
    if found.password is Password.OWN:
        yield f'             export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(file))})"'
    elif found.password is Password.SET:
        yield f'             export PREFECT_API_AUTH_STRING="${services.SERVER_AUTH}"'
    yield "`labdag down` ends them."
