"""What may keep runs from going well on this machine, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from labdag.environment import without_lent
from labdag.errors import UserError
from labdag.execution.journal import Journal
from labdag.execution.schedule import GPU, detected
from labdag.orchestration.guard import is_loopback
from labdag.pipeline.graph import Pipeline, problems
from labdag.pipeline.settings import cache_of, default_remote, link_types
from labdag.results.summary import counted

LOW_BYTES = 5 * 1024**3
SECONDS = 60.0  # for any one program that is asked
ANSWER_SECONDS = 5.0  # for a server to say whether it is open
NO_PASSWORD, ANY_PAGE = "asks for no password", "answers every web page"
FOREIGN = "http://page.example"  # the origin of no page of the UI
# Command lines of Prefect servers; older versions of labdag called their own flows.local_server.
SERVER = re.compile(r"prefect server start|prefect\.server\.api\.server|(flows|labdag\.orchestration)\.local_server")


class Health(StrEnum):
    """How well it is."""

    GOOD = "ok"
    NOTE = "note"  # it runs, but could run better, or somebody should know
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        what: the thing.
        health: how well it is.
        found: what there is.
        advice: what to do about it, if anything.
    """

    what: str
    health: Health
    found: str
    advice: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Look at all that runs need, one thing after the other."""
    yield _dvc()
    yield _git(root)
    yield from _pipeline(root)
    yield _server()
    yield from _proxies()
    yield from _open_servers(root)
    cache = _cache_folder(root)
    yield from _cache(root, cache)
    yield _remote(root)
    yield _disk(root, cache)
    yield _gpu()
    yield from _leftovers(root)


def _dvc() -> Finding:
    from labdag.dvc_internals import recording

    try:
        recording.check()
    except RuntimeError as error:
        return Finding("DVC", Health.BAD, str(error), "Install the version that constraints.txt names.")
    return Finding("DVC", Health.GOOD, f"{version('dvc')}, Prefect {version('prefect')}")


def _git(root: Path) -> Finding:
    if _asked("git", "-C", root, "rev-parse", "--git-dir") is None:
        return Finding("git", Health.NOTE, "no git repository: DVC has no commits to compare results with")
    head = _asked("git", "-C", root, "log", "-1", "--format=%h %s")
    if head is None:
        return Finding(
            "git", Health.NOTE, "no commit yet", "`git add . && git commit`: DVC compares results with commits."
        )
    ignored = _asked("git", "-C", root, "check-ignore", "dvc.lock")
    if ignored:
        return Finding(
            "git", Health.BAD, "dvc.lock is ignored", "Take it out of .gitignore: it says what was made of what."
        )
    return Finding("git", Health.GOOD, f"at {head.strip()}")


def _pipeline(root: Path) -> Iterator[Finding]:
    try:
        with Pipeline(root) as pipeline:
            yield Finding("pipeline", Health.GOOD, counted(len(pipeline.stages)))
            for problem in problems(pipeline.stages.values()):
                yield Finding("meta", Health.NOTE, problem)
    except UserError as error:
        yield Finding("pipeline", Health.BAD, str(error), "Mend that first; nothing runs before.")


def _server() -> Finding:
    import httpx
    from prefect.settings import get_current_settings

    from labdag.orchestration import server

    url = get_current_settings().api.url
    if not url:
        return Finding(
            "Prefect server",
            Health.NOTE,
            "none named; each run starts one for itself, which takes a while",
            "`labdag up` starts one for this project, in the background.",
        )
    try:
        with server.brief_client() as client:
            return Finding("Prefect server", Health.GOOD, f"{client.api_version()} at {url}")
    except (httpx.HTTPError, ValueError, ImportError) as error:  # the last two of a proxy that httpx can't use
        what = "lets nobody in" if isinstance(error, httpx.HTTPStatusError) else "does not answer"
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = server.about(error) or "See the server's own log."
        return Finding("Prefect server", Health.BAD, f"{url} {what}: {told}", advice)


def _proxies() -> Iterator[Finding]:
    """SOCKS proxies in the environment, of which Prefect's client does not see all."""
    from labdag.orchestration import proxies, server

    original = without_lent(os.environ)
    named = [f"{name}={original[name]}" for name in proxies.variables(original) if proxies.is_socks(original[name])]
    if server.no_way:
        yield Finding("proxy", Health.BAD, server.no_way)
    elif named:
        told = f"{', '.join(named)}: not asked for the Prefect server, but left as it is for stages, DVC and git"
        yield Finding("proxy", Health.NOTE, told)


def _open_servers(root: Path) -> Iterator[Finding]:
    """The Prefect servers that let in whoever asks: the named one, and those of this account, whoever started them."""
    from prefect.settings import get_current_settings

    from labdag.orchestration import password, server, services

    named = None if server.no_way else get_current_settings().api.url
    servers = {f"{url}/api": process for process, url in _listening()}
    for api in dict.fromkeys([*([named] if named else []), *servers]):
        if holes := _holes(api):
            who = f" (process {servers[api]})" if api in servers else ""
            # A server without a password that keeps web pages out was wanted so.
            health = Health.BAD if api == named and ANY_PAGE in holes else Health.NOTE
            end = f"end it with `kill {servers[api]}`" if api in servers else "have it ended"
            yield Finding(
                "open server",
                health,
                f"{api}{who} {' and '.join(holes)}: whoever comes in can run commands through its workers",
                f"`labdag up` starts one with a password; {end}, or give it a password and one origin "
                "(PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_CORS_ALLOWED_ORIGINS).",
            )
    if password.is_exposed(services.place(root)):
        yield Finding(
            "password",
            Health.BAD,
            f"other accounts can read {services.password_file(root)}",
            "`labdag down`, then `labdag up` makes another one.",
        )


def _holes(api: str) -> list[str]:
    """What a server lets in that it should not."""
    import httpx

    is_here = is_loopback(urlsplit(api).hostname or "")

    def answer(method: str, path: str, **headers: str) -> httpx.Response | None:
        with suppress(httpx.HTTPError):
            return httpx.request(
                method, f"{api}/{path}", headers=headers, timeout=ANSWER_SECONDS, trust_env=not is_here
            )
        return None

    holes = []
    found = answer("GET", "admin/version")
    if found is not None and found.is_success:
        holes.append(NO_PASSWORD)
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
    found = answer("OPTIONS", "flows/filter", **asked)
    if found is not None and found.headers.get("access-control-allow-origin") in ("*", FOREIGN):
        holes.append(ANY_PAGE)
    return holes


def _listening() -> Iterator[tuple[int, str]]:
    """The Prefect servers of this account on this machine: the process of each, and where it listens."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            line = " ".join(process.cmdline())
            if SERVER.search(line) is None or process.uids().real != os.getuid():
                continue
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(each.laddr.ip, each.laddr.ip)
                    url = f"http://[{host}]:{each.laddr.port}" if ":" in host else f"http://{host}:{each.laddr.port}"
                    yield process.pid, url


def _cache_folder(root: Path) -> Path:
    with suppress(UserError):  # told of the pipeline already
        return cache_of(root)
    return root / ".dvc" / "cache"


def _existing(folder: Path) -> Path:
    """The folder, or the next one above that is there, as far as this user may see."""
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))  # noqa: PTH110, no error


def _cache(root: Path, folder: Path) -> Iterator[Finding]:
    told = _asked(sys.executable, "-m", "dvc", "doctor", cwd=root) or ""
    existing = _existing(folder)
    if not os.access(existing, os.W_OK):
        yield Finding(
            "cache", Health.BAD, f"{folder} can't be written", f"Give yourself the right to: `chmod -R u+w {folder}`."
        )
    else:
        yield Finding("cache", Health.GOOD, str(folder))
    links = re.search(r"^Cache types: (.*)$", told, re.MULTILINE)
    possible = [kind.strip() for kind in links[1].split(",")] if links else []
    wanted = ""
    with suppress(UserError):
        wanted = ",".join(link_types(root))
    if "reflink" in possible:
        yield Finding("links", Health.GOOD, "reflink: files of the workspace take no room beside the cache's")
    elif wanted:
        yield Finding("links", Health.GOOD, f"{wanted} (cache.type)")
    else:
        yield Finding(
            "links",
            Health.NOTE,
            "copies: each output is on the disk twice",
            "`dvc config cache.type hardlink,symlink` saves the room; outputs are read-only then.",
        )


def _remote(root: Path) -> Finding:
    try:
        found = default_remote(root)
    except UserError as error:
        return Finding("remote", Health.BAD, str(error))
    if found is None:
        return Finding(
            "remote",
            Health.NOTE,
            "none: what the cache has is nowhere else",
            "`dvc remote add --default NAME ADDRESS`.",
        )
    default, folder = found
    if folder is None:
        return Finding("remote", Health.GOOD, default)
    existing = _existing(folder)
    if not existing.is_dir():
        return Finding("remote", Health.BAD, f"{default}: {existing} is no folder", "Give the remote another address.")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "remote",
            Health.BAD,
            f"{default}: {folder} can't be written",
            f"Have its owner give you the right to: `chmod u+rwx {existing}`.",
        )
    if existing != folder:
        return Finding(
            "remote",
            Health.NOTE,
            f"{default}: {folder} is not there",
            "The first `dvc push` makes it; if it was there before, mount its disk.",
        )
    return Finding("remote", Health.GOOD, f"{default}: {folder}")


def _disk(root: Path, cache: Path) -> Finding:
    folder = min((root, _existing(cache)), key=lambda folder: shutil.disk_usage(folder).free)
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free < LOW_BYTES:
        return Finding(
            "disk", Health.NOTE, found, "Free some: `dvc gc --workspace` drops what no result needs any more."
        )
    return Finding("disk", Health.GOOD, found)


def _gpu() -> Finding:
    count = detected()[GPU]
    if count == 0:
        return Finding("GPU", Health.NOTE, "none; everything runs on the CPU")
    names = _asked("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if names is None:
        return Finding("GPU", Health.BAD, f"{count} there, but nvidia-smi fails", "Mend the driver's installation.")
    return Finding("GPU", Health.GOOD, ", ".join(names.strip().splitlines()))


def _leftovers(root: Path) -> Iterator[Finding]:
    journal = Journal(root)
    dead, unfinished = journal.dead(), journal.unfinished()
    if dead or unfinished:
        told = [f"{len(dead)} run{'s' * (len(dead) != 1)} died", f"stages cut short: {', '.join(unfinished) or 'none'}"]
        yield Finding("journal", Health.NOTE, "; ".join(told), "Nothing to do: the next `labdag run` tidies up.")
    else:
        yield Finding("journal", Health.GOOD, "no run died")
    yield _rwlock(root / ".dvc" / "tmp" / "rwlock")


def _rwlock(path: Path) -> Finding:
    """DVC's list of the files that its commands read and write."""
    try:
        users = json.loads(path.read_text())
        writers = [*users.get("write", {}).values()]
        dead = [info for info in writers if not psutil.pid_exists(info["pid"])]
        readers = [info for each in users.get("read", {}).values() for info in each]
        alive = [info for info in (*writers, *readers) if psutil.pid_exists(info["pid"])]
    except FileNotFoundError:
        return Finding("locks", Health.GOOD, "none")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Finding("locks", Health.BAD, f"{path} is broken off", "Nothing to do: the next `labdag run` mends it.")
    if dead:
        return Finding(
            "locks",
            Health.NOTE,
            "left by commands that were killed",
            "Nothing to do: DVC takes each off when it needs the same files.",
        )
    return Finding("locks", Health.GOOD, "in use by a DVC command" if alive else "none")


def _asked(*command: str | Path, cwd: Path | None = None) -> str | None:
    """What a program says; None if it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
