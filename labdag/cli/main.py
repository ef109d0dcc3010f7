"""The `labdag` command. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from labdag.cli import tables
from labdag.environment import keep_quiet, lend, without_lent
from labdag.errors import UserError
from labdag.orchestration import proxies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from labdag.doctor import Finding
    from labdag.flows.reproduce import Reproduction, StageFailedError
    from stages.params import Params

INTERRUPTED = 130
LEFT = "the stages that were running left nothing half-written."

app = typer.Typer(
    name="labdag",
    help="Run DVC pipelines as Prefect flows: in parallel, exactly what a change affects, and nothing else.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and exit code 1, Ctrl-C in exit code 130."""
    gc.disable()  # while all is imported, which takes a third longer with it
    # A busy machine takes its time for a temporary server. Whoever has set this has the last word.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    keep_quiet(os.environ)
    proxies.settle(os.environ, os.environ.get("PREFECT_API_URL", ""))
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except SystemExit as end:
        _leave(end)
        raise
    except Exception as error:
        server = sys.modules.get("labdag.orchestration.server")
        sentence = (server.about(error) if server is not None else None) or _about_settings(error)
        if sentence is None:
            raise
        _fail(sentence)
    finally:
        gc.freeze()  # Python looks for garbage once more before it exits, in all that Prefect and DVC consist of


def _leave(end: SystemExit) -> None:
    """End at once if Prefect's server is gone: Prefect would try for minutes to tell it the rest."""
    server = sys.modules.get("labdag.orchestration.server")
    if server is not None and server.is_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)


def _about_settings(error: BaseException) -> str | None:
    """What is wrong with Prefect's settings, if an error is about them: it reads them when it is imported."""
    from traceback import walk_tb

    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    if not isinstance(error, ValueError) or not any(name.startswith("prefect.settings") for name in frames):
        return None
    from pydantic import ValidationError

    what = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} of {error.title}: {first['msg']}, not {first['input']!r}"
    return (
        f"Prefect can't read its settings: {what}. They stand in variables PREFECT_… of the environment, in .env, "
        "prefect.toml and pyproject.toml, and in the profiles.toml of Prefect's home."
    )


def _targets(targets: list[str] | None, params: Params | None) -> list[str]:
    """What is meant, where none or a comparison is named."""
    if params is None:
        return targets or []
    if not targets:
        return [*params.labs, *params.compare]  # not the datasets that no lab uses
    # A comparison reads its labs' figures, but whoever asks for it wants to open their reports too.
    groups = [params.compare[target].labs for target in targets if target in params.compare]
    return list(dict.fromkeys([*targets, *(lab for labs in groups for lab in labs)]))


def _slot(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdecimal():
        raise MistakeError(f"--slots {text} should be a name and a whole number, such as gpu=1.")
    return name, int(size)


class MistakeError(UserError):
    """Something that the user can mend; its text says how."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"labdag {version('labdag')}")
        raise typer.Exit


@app.callback()
def _options(
    _wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="Stages, groups, keys of foreach (labs), or globs ('train@*'); with all upstream. None means all.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Stages at once (default: one per CPU core).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Run stages even if nothing changed.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="After a failure, go on with what does not depend on it.")
    ] = False,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Take what depends on the targets, instead of what they depend on.")
    ] = False,
    pull: Annotated[bool, typer.Option("--pull", help="Fetch what is missing from DVC's remote.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave stages alone of which only data are missing.")
    ] = False,
    single_item: Annotated[
        bool, typer.Option("--single-item", "-s", help="Take the targets alone, without what is upstream.")
    ] = False,
    force_downstream: Annotated[
        bool, typer.Option("--force-downstream", help="Run what depends on a stage that has run, in any case.")
    ] = False,
    no_run_cache: Annotated[
        bool, typer.Option("--no-run-cache", help="Restore nothing from earlier runs, but run again.")
    ] = False,
    no_commit: Annotated[
        bool, typer.Option("--no-commit", help="Keep no outputs in DVC's cache; `dvc commit` does later.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but what went wrong.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what Prefect does, step by step.")] = False,
    slots: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE",
            help="How much there is of a resource of meta.slots (default: cpu and gpu, as this machine has them).",
        ),
    ] = None,
) -> None:
    """Bring labs up to date: run exactly the stages that changes affect, independent ones at once."""
    root, folder = _here()
    if quiet or verbose:  # before Prefect is loaded, which looks at it once
        lend(os.environ, PREFECT_LOGGING_LEVEL="ERROR" if quiet else "DEBUG")
    from labdag import processes

    if parent := os.environ.pop(processes.PARENT, ""):  # it is not the parent of what a stage starts
        processes.end_with_parent(int(parent))
    _prepare(root)
    params = _check_params(root)
    from labdag.execution.schedule import sizes
    from labdag.pipeline import graph
    from labdag.pipeline.targets import rooted, select
    from labdag.results import summary

    told = dict(map(_slot, slots or []))
    # Told before Prefect's server is waited for: a typo should not cost ten seconds.
    known = graph.prepare(root).stages
    targets = _targets(rooted(known, targets or [], folder), params)
    select(known, targets)
    sizes(known, told)
    if not known:
        _say_no_stages()
        return

    done, failure = _reproduce(
        targets=targets,
        jobs=jobs,
        force=force,
        keep_going=keep_going,
        downstream=downstream,
        pull=pull,
        allow_missing=allow_missing,
        single_item=single_item,
        force_downstream=force_downstream,
        no_run_cache=no_run_cache,
        no_commit=no_commit,
        slots=told,
        root=str(root),
    )
    if not quiet:
        tables.show(summary.rows(root, done.stages, done.outcomes))
        print(f"{summary.counts(done.outcomes.values())}")
    if failure is not None:
        from labdag.flows.reproduce import NOT_STARTED

        is_cut_short = any(outcome.reason.startswith(NOT_STARTED) for outcome in done.outcomes.values())
        hint = "\nWhat does not depend on that was not started either; `--keep-going` goes on with it."
        _fail(f"{failure}{hint if is_cut_short else ''}")


def _say_no_stages() -> None:
    print("There are no stages here: dvc.yaml defines them, and `dvc stage add` writes it.")


def _reproduce(**parameters: Any) -> tuple[Reproduction, StageFailedError | None]:
    """Run the flow that brings stages up to date: what it did, and why it failed, if it did."""
    from labdag.flows.reproduce import Reproduction, RunCancelledError, StageFailedError, reproduce
    from labdag.orchestration import server

    failure = None
    try:
        with server.without_own_heartbeats():
            done = _flow(reproduce, LEFT, **parameters)
    except StageFailedError as error:
        done, failure = error.reproduction, error
    except RunCancelledError:
        _interrupted(LEFT)
    assert isinstance(done, Reproduction)
    return done, failure


def _flow(function: Callable[..., Any], if_interrupted: str, **parameters: Any) -> Any:
    """Run a flow, with a temporary server where none is named: what it returns."""
    from labdag.orchestration import server

    gc.freeze()
    gc.enable()
    # Closing the terminal, or `kill`, ends a run as Ctrl-C does: with no stage left behind. (While the flow runs,
    # Prefect has a handler of its own for `kill`.)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        server.start_temporary()
        done = server.call(function, **parameters)
    except KeyboardInterrupt:
        _interrupted(if_interrupted)
    finally:
        # What the command prints is the last word: not Prefect's farewell to its temporary server.
        logging.getLogger("prefect").setLevel(logging.WARNING)
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it warns of what it sends at the end
    return done


def _interrupted(what: str) -> NoReturn:
    print(f"Interrupted; {what}", file=sys.stderr)
    raise typer.Exit(INTERRUPTED) from None


@app.command()
def plan(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="TARGET", help="As for `labdag run`.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="As for `labdag run`.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="As for `labdag run`.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="As for `labdag run`.")] = False,
    single_item: Annotated[bool, typer.Option("--single-item", "-s", help="As for `labdag run`.")] = False,
    force_downstream: Annotated[bool, typer.Option("--force-downstream", help="As for `labdag run`.")] = False,
    no_run_cache: Annotated[bool, typer.Option("--no-run-cache", help="As for `labdag run`.")] = False,
    pull: Annotated[bool, typer.Option("--pull", help="As for `labdag run`.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show the stages that stay as they are, too.")] = False,
) -> None:
    """Tell what a run would do to each stage, and why, without running anything."""
    root, folder = _here()
    params = _check_params(root)
    from labdag.execution.plan import How, Will
    from labdag.execution.plan import plan as planned
    from labdag.pipeline import graph
    from labdag.pipeline.targets import rooted, select
    from labdag.results import summary

    with graph.Pipeline(root) as pipeline:
        meant = _targets(rooted(pipeline.stages, targets or [], folder), params)
        pipeline.allow_missing = allow_missing
        stages = select(pipeline.stages, meant, downstream=downstream, single=single_item)
        steps = planned(pipeline, stages, How(force, force_downstream, no_run_cache, pull))
        if not pipeline.stages:
            _say_no_stages()
            return
    for problem in graph.problems(stages.values()):
        print(f"Warning: {problem}", file=sys.stderr)
    shown = [step for step in steps if everything or step.will is not Will.UNCHANGED]
    if shown:
        tables.show([{"stage": step.stage, "what": step.will, "why": step.reason} for step in shown])
    always = (Will.UNCHANGED, Will.RESTORE, Will.RUN, Will.MAYBE)
    counts = [
        f"{count} {will}" for will in Will if (count := sum(step.will is will for step in steps)) or will in always
    ]
    print(f"{summary.counted(len(steps))}: {', '.join(counts)}")


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="REV", help="A git revision, a DVC experiment, or 'workspace'.")
    ] = "HEAD",
    new: Annotated[str, typer.Argument(metavar="REV", help="Another one.")] = "workspace",
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", metavar="LAB", help="Only this result; may be given again.", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Print a Markdown table, as for a pull request.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Print DVC's own `params diff` and `metrics diff`.")] = False,
) -> None:
    """Show what was changed between two revisions, and what it did to each result."""
    root = _project()
    if sum((markdown, as_json, raw)) > 1:
        raise MistakeError("--md, --json and --raw exclude each other.")
    if raw:
        _print_raw_diff(old, new)
        return
    from labdag.pipeline.revisions import WORKSPACE, History
    from labdag.results import compare

    with History(root) as history:
        # The workspace first: DVC has read it already, and reads it anew after it has looked at another revision.
        read = {name: history.read(name) for name in sorted({old, new}, key=lambda name: name != WORKSPACE)}
        before, after = read[old], read[new]
        lines = compare.diff(before, after, history.repeats, targets or (), everything=as_json)
    if as_json:
        print(json.dumps([line.told() for line in lines], indent=2, default=str))  # YAML knows dates
        return
    rows = []
    for line in lines:
        was, now, change, remark = compare.printed(line)
        names = [
            f"{name} (revision)" if name in ("result", "what", "change", "remark") else name for name in (old, new)
        ]
        values = {names[0]: was, names[1]: now}
        rows.append({"result": line.target, "what": line.what or "-", **values, "change": change, "remark": remark})
    if rows and not any(row["remark"] for row in rows):
        rows = [{name: text for name, text in row.items() if name != "remark"} for row in rows]
    if rows:
        _print_markdown(rows) if markdown else tables.show(rows, as_is=(old, new))
    elif not any(revision.records for revision in (before, after)):
        print(f"Nothing was ever run, neither in {old} nor in {new}; `labdag run` does.")
    else:
        print(f"No result of {new} differs from that of {old}.")
    for revision in (before, after):
        if edited := revision.edited():
            how = (
                "`labdag run` brings it up to date" if revision.name == WORKSPACE else "its commit came before the run"
            )
            print(f"In {revision.name}, {edited} has another value than the results were made with: {how}.")


def _print_raw_diff(old: str, new: str) -> None:
    import subprocess

    for kind in ("params", "metrics"):
        command = [sys.executable, "-m", "dvc", kind, "diff", old, *(() if new == "workspace" else (new,))]
        if code := subprocess.run(command).returncode:
            raise typer.Exit(code)


def _print_markdown(rows: list[dict[str, str]]) -> None:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"

    print(line(rows[0]))
    print(line(":---" if name in ("result", "what", "remark") else "---:" for name in rows[0]))
    for row in rows:
        print(line(row.values()))


@app.command()
def sweep(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A lab, or any target of `labdag run`.")],
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="NAME=VALUES",
            help="A param and its values: lr=0.1,0.01, seed=1..5; for a search, a range: lr=1e-4..1e-1:log.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Points at once.")] = 1,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Search with Optuna, trying so many points, instead of all.", show_default=False),
    ] = None,
    metric: Annotated[str, typer.Option(help="The figure that a search makes best.")] = "accuracy",
    minimize: Annotated[bool, typer.Option("--minimize", help="Less of it is better.")] = False,
) -> None:
    """Make a target with combinations of some values, each in a copy, and record them as DVC experiments."""
    root, folder = _here()
    from labdag.orchestration import temporary_server

    temporary_server.prepare(root)
    target = _rooted_one(root, folder, target)
    _check_points(root, target, values or [], is_grid=trials is None, are_labs=_check_params(root) is not None)
    from labdag.flows.sweep import sweep as made
    from labdag.sweeping.swept import Found, PointsFailedError, Sweep

    try:
        done = _flow(
            made,
            "what is recorded stays; started again, the sweep goes on from there.",
            target=target,
            values=values or [],
            jobs=jobs,
            trials=trials,
            metric=metric,
            minimize=minimize,
            root=str(root),
        )
    except PointsFailedError as error:
        done = error.sweep
    assert isinstance(done, Sweep)
    tables.show(done.rows())
    failed = done.failed()
    known = sum(result.found is Found.KNOWN for result in done.results)
    names = [result.experiment for result in done.results if result.experiment]
    points = "1 point" if len(done.results) == 1 else f"{len(done.results)} points"
    print(f"{points}: {len(names) - known} recorded, {known} known, {len(failed)} failed")
    if names:
        print(f"`dvc exp show --all-commits` has them; `dvc exp apply {names[0]}` brings one into your workspace.")
    if failed:
        _fail("\n".join(f"{result.point.name}: {result.reason}" for result in failed))


@app.command()
def retrain(
    target: Annotated[str, typer.Argument(metavar="LAB", help="A lab, or another result that `labdag list` shows.")],
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="NAME=VALUE",
            help="A param to set; seed=fresh takes a seed that was never tried.",
            show_default=False,
        ),
    ] = None,
    branch: Annotated[
        str | None, typer.Option(help="The branch to take (default: the one checked out).", show_default=False)
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(help="The git remote that has the branch, and gets what is registered.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The artifact to register (default: the one that the lab makes).", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Stages at once (default: one per CPU core).")
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Fetch what is missing from DVC's remote.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Retrain even if nothing has changed.")] = False,
) -> None:
    """Make a lab anew from the newest commit, in a clone, and register its model if it passes the gate."""
    root, folder = _here()
    _prepare(root)
    target = _rooted_one(root, folder, target)
    from labdag.flows.reproduce import RunCancelledError, StageFailedError
    from labdag.flows.retrain import Retraining
    from labdag.flows.retrain import retrain as retrained
    from labdag.orchestration import server

    left = "nothing is registered; started again, it goes on from the stages that are done."
    try:
        with server.without_own_heartbeats():
            done = _flow(
                retrained,
                left,
                target=target,
                values=values,
                branch=branch,
                remote=remote,
                model=model,
                jobs=jobs,
                pull=pull,
                force=force,
                root=str(root),
            )
    except StageFailedError as error:
        raise MistakeError(str(error)) from None
    except RunCancelledError:
        _interrupted(left)
    assert isinstance(done, Retraining)
    if done.checks:
        tables.show(done.rows())
    print(f"{done.ending}: {done.reason}")


def _rooted(root: Path, folder: str, targets: list[str]) -> list[str]:
    """Targets that are named in a folder, as they are named from the root."""
    from labdag.pipeline import graph
    from labdag.pipeline.targets import rooted

    return rooted(graph.load(root), targets, folder) if folder and targets else targets


def _rooted_one(root: Path, folder: str, target: str) -> str:
    """The same of one that is to be one."""
    names = _rooted(root, folder, [target])
    if len(names) > 1:
        raise MistakeError(f"'{target}' means several stages in {folder}: {', '.join(names)}. Name one of them.")
    return names[0]


def _check_points(root: Path, target: str, values: list[str], *, is_grid: bool, are_labs: bool) -> None:
    """Hold each point against what there is, and labs against the options that they have, before any is begun."""
    import copy

    from labdag.pipeline import graph
    from labdag.pipeline.targets import select
    from labdag.pipeline.workspace import require_commit
    from labdag.sweeping.points import apply, corners, grid, read, require_read, settings

    require_commit(root)
    pipeline = graph.prepare(root)
    stages = select(pipeline.stages, [target])
    text = read(root)
    chosen = settings(values, text, target)
    require_read(pipeline, stages, chosen, target)
    points = grid(target, chosen) if is_grid else corners(target, chosen)
    if are_labs:
        from stages import params

        schema = params.schema()
        for point in points:
            changed = copy.deepcopy(text)
            apply(changed, point.values)
            try:
                params.whole(schema, changed)
            except params.UserError as error:
                raise MistakeError(f"{point.name}: {error}") from None


@app.command()
def up(
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="The port of the server, and of its UI (default: 4200).", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="The address to listen at; any other than 127.0.0.1 lets other machines in (default: 127.0.0.1).",
            show_default=False,
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="PREFECT_SERVER_DATABASE_CONNECTION_URL",
            show_envvar=False,
            help="The server's database, such as postgresql://me@host/db (default: the project's SQLite).",
            show_default=False,
        ),
    ] = None,
    no_password: Annotated[
        bool,
        typer.Option(
            "--no-password",
            help="Ask for no password: every account of this machine can then run commands as you, through the server.",
        ),
    ] = False,
    public_urls: Annotated[
        list[str] | None,
        typer.Option(
            "--public-url",
            metavar="URL",
            help="The address of the reverse proxy that others use, such as https://labs.example.org; may be "
            "given again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start Prefect's server, a worker and this project's deployments in the background, and say where the UI is.

    A database with a password is named in PREFECT_SERVER_DATABASE_CONNECTION_URL.
    """
    root = _project(warns=False)
    from labdag.orchestration.services import Wanted, public_url
    from labdag.orchestration.up import bring_up, report

    wanted = Wanted(host, port, database, no_password, tuple(map(public_url, public_urls or ())))
    found, declared = bring_up(root, wanted, lambda line: print(line, flush=True))
    for line in report(root, found, declared):
        print(line)


@app.command()
def down() -> None:
    """End what `labdag up` has started, and the runs that it has."""
    root = _project(warns=False)
    from labdag.orchestration import services

    with services.alone(root):
        if not services.stop(root, print):
            print("Nothing is up here.")


@app.command()
def serve() -> None:
    """Serve this project's deployments from this process until Ctrl-C, without a work pool and a worker."""
    root = _project()
    from labdag.orchestration import database

    database.check_profiles()
    from prefect import serve as served

    from labdag.orchestration import deployments, server, services

    declared = deployments.read(root)
    up = services.running(root)
    if up is not None and up.api == server.address():
        raise MistakeError("`labdag up` has a worker for these deployments already; `labdag down` ends it.")
    if not (address := server.address()):
        raise MistakeError(
            "There is no server to serve for: start one (`prefect server start`), and name it in PREFECT_API_URL."
        )
    if not server.answers():
        raise MistakeError(f"No Prefect server answers at {address}.")
    deployments.end_dead_runs()
    served(*deployments.served(declared))


@app.command()
def verify(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="As for `labdag run`. None means all that was run.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Stages at once (default: one per CPU core).")
    ] = None,
) -> None:
    """Run stages again in an isolated copy, with no cache, and hold each output against dvc.lock.

    Exits with 1 where one has other bytes.
    """
    root, folder = _here()
    _prepare(root)
    targets = _rooted(root, folder, targets or [])
    params = _check_params(root)
    from labdag.verify import verify as verified

    def run_again(names: list[str], copy: Path) -> None:
        _, failure = _reproduce(targets=names, jobs=jobs, root=str(copy))
        if failure is not None:
            raise MistakeError(f"In the isolated copy, {failure}")

    found = verified(root, _targets(targets, params) if targets else [], run_again)
    if found.differences:
        tables.show(
            [
                {
                    "stage": each.stage,
                    "output": each.path,
                    "follows from": each.follows or "-",
                    "difference": each.what or "-",
                }
                for each in found.differences
            ]
        )
    same = found.outs - len(found.differences)
    outputs = "1 output" if found.outs == 1 else f"{found.outs} outputs"
    print(f"{outputs}: {same} the same, {len(found.differences)} different")
    if found.differences:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Look at all that runs need on this machine, and say what to do where something is amiss."""
    from labdag.doctor import Health, examine
    from labdag.orchestration import database

    root = _project()
    database.check_profiles()
    findings = list(examine(root))
    if (root / "stages" / "datasets" / "reach.py").is_file():
        findings += _reached(root)
    rows = [{"what": f.what, "is": f.health, "found": f.found, "advice": f.advice or "-"} for f in findings]
    tables.show(rows)
    if any(finding.health is Health.BAD for finding in findings):
        raise typer.Exit(1)


@app.command("list")
def list_() -> None:
    """Show every lab with its dataset, model, results, and whether they are fresh, stale or never made."""
    root = _project()
    params = _check_params(root)
    from labdag.pipeline import graph
    from labdag.pipeline.targets import results, select
    from labdag.results import summary

    with graph.Pipeline(root) as pipeline:
        stages = select(pipeline.stages, [])
        stale = {name: graph.told(pipeline.changes(name)) for name in stages}
    if not stages:
        _say_no_stages()
        return
    labs = results(stages) if params is None else {key: select(stages, [key]) for key in params.labs}
    rows = [
        {
            "target" if params is None else "lab": key,
            **_described(params.labs.get(key) if params else None),
            **summary.figures(root, members.values()),
            "state": _state([(stage, stale[stage.name]) for stage in members.values()]),
        }
        for key, members in labs.items()
    ]
    tables.show(rows)


@app.command()
def check(
    labs: Annotated[
        list[str] | None, typer.Argument(metavar="LAB", help="Labs. None means all that have been run.")
    ] = None,
) -> None:
    """Say whether labs reached what their blocks of params.yaml expect; exit with 1 where one did not."""
    root = _project()
    params = _check_params(root)
    if params is None:
        raise MistakeError(f"{root} is no project of labs: nothing in it says what is expected.")
    from labdag.pipeline import graph
    from labdag.pipeline.targets import select
    from labdag.results import summary
    from stages.params import judge

    stages = graph.load(root)
    for lab in labs or ():
        select(stages, [lab])
        if lab not in params.labs:
            raise MistakeError(f"'{lab}' is no lab; `labdag list` shows the labs.")
    stale = graph.stale(root, stages)
    missed = False
    for lab in labs or params.labs:
        members = select(stages, [lab])
        accuracy = summary.metrics(root, members.values()).get("accuracy")
        if accuracy is None:
            if labs:
                missed = True
                print(f"{lab}: not run yet; `labdag run {lab}` does")
            continue
        verdict = judge(params.labs[lab].expect, accuracy)
        missed |= verdict.agrees is False
        state = _state([(stage, stale[stage.name]) for stage in members.values()])
        print(f"{lab}: {verdict.sentence}" + ("" if state == "fresh" else f" ({state})"))
    if missed:
        raise typer.Exit(1)


@app.command()
def course() -> None:
    """Make one page of all labs and comparisons that have been run: results/course.html."""
    root = _project()
    params = _check_params(root)
    if params is None:
        raise MistakeError(f"{root} is no project of labs: there is no course to show.")
    import subprocess

    from labdag.pipeline import graph
    from labdag.pipeline.targets import select

    stages = graph.load(root)
    reasons = graph.stale(root, stages)
    keys = [key for key in (*params.labs, *params.compare) if any(reasons[name] for name in select(stages, [key]))]
    # Another process: labdag does not import stages/.
    raise typer.Exit(subprocess.run([sys.executable, "-m", "stages.show.course", "--stale", *keys]).returncode)


def _reached(root: Path) -> list[Finding]:
    """Whether the archives of the labs' datasets can be had."""
    import subprocess

    from labdag.doctor import Finding, Health

    # Another process: labdag does not import stages/.
    done = subprocess.run(
        [sys.executable, "-m", "stages.datasets.reach"],
        cwd=root,
        env=without_lent(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    advice = "Name a mirror in LABDAG_MIRRORS, or take labs on datasets that need no download."
    found = []
    for line in done.stdout.splitlines():
        name, is_there, where = line.split("\t")
        health = Health.GOOD if is_there == "yes" else Health.NOTE
        found.append(Finding(f"dataset {name}", health, where, "" if is_there == "yes" else advice))
    return found


def _state(reasons: Sequence[tuple[Any, str | None]]) -> str:
    """Fresh, never run, the first stage that is stale and why, or what has not run yet of one that was begun."""
    from labdag.pipeline.graph import NEVER_RUN

    never = [stage for stage, reason in reasons if reason is not None and reason.startswith(NEVER_RUN)]
    changed = [(stage.name, reason) for stage, reason in reasons if reason is not None and stage not in never]
    if all(stage in never for stage, _ in reasons if stage.key == reasons[-1][0].key):
        return NEVER_RUN
    if not changed:
        return f"unfinished: {never[0].name} has {NEVER_RUN}" if never else "fresh"
    name, reason = changed[0]
    first, *more = reason.split("; ")
    return f"stale: {name}: {first}" + (f" and {len(more)} more" if more else "")


def _project(*, warns: bool = True) -> Path:
    """The root of the DVC repository, to which this process goes; server and password are set if `labdag up` runs."""
    return _here(warns=warns)[0]


def _here(*, warns: bool = True) -> tuple[Path, str]:
    """The root, as `_project` says, and where the user stands: a path from the root, empty at the root itself."""
    from labdag.git import find_root

    start = Path.cwd()
    root = find_root(start)
    if root != start:
        os.chdir(root)
    if "PREFECT_API_URL" not in os.environ:
        from labdag.orchestration import services

        if found := services.running(root):  # that `labdag up` has started
            services.use(root, found)
            if warns and not found.is_guarded:
                print(
                    f"Warning: the server at {found.url} was started by an older labdag, and may let any web page and "
                    "account of this machine run commands as you; `labdag up` starts it again with a password.",
                    file=sys.stderr,
                )
    return root, start.relative_to(root).as_posix() if root != start else ""


def _prepare(root: Path) -> None:
    """Start what takes as long to load as this process takes to load its own: DVC for the stages, Prefect's server."""
    from labdag.execution import execute
    from labdag.orchestration import temporary_server

    temporary_server.prepare(root)
    execute.prepare()


def _check_params(root: Path) -> Params | None:
    """Validate and return labdag's own params.yaml; none in another project."""
    if not (root / "stages" / "params.py").is_file():
        return None
    sys.path.insert(0, str(root))
    from stages import params

    try:
        loaded = params.load()
    except params.UserError as error:
        raise MistakeError(str(error)) from None
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    if params.dag(text, loaded.compare) != text:
        raise MistakeError("dvc.yaml does not have the comparisons that params.yaml has; run `make dag`.")
    return loaded


def _described(lab: Any) -> dict[str, str]:
    return {} if lab is None else {"dataset": lab.dataset, "model": lab.model.name}


def _fail(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)
    end = SystemExit(1)
    _leave(end)
    raise end


if __name__ == "__main__":
    main()
