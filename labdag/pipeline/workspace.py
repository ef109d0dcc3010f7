"""An isolated copy of a repository as it lies there, in which stages run without touching anything of the user's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labdag.environment import without_lent
from labdag.errors import UserError
from labdag.files import remove
from labdag.git import GitError, git
from labdag.git import top as git_top
from labdag.pipeline.graph import Pipeline
from labdag.pipeline.revisions import EXPERIMENT, EXPERIMENTS
from labdag.pipeline.settings import cache_of, is_without_git, near_remotes, share, without_git

CACHE = ".dvc/cache"  # of the copy
TAGS = "refs/tags/"
# Options of git by which remotes are reached.
ACCESS = r"^((http|credential|url|protocol)\.|core\.(sshcommand|askpass|gitproxy)$)"


@contextmanager
def isolated(pipeline: Pipeline, names: Iterable[str], purpose: str) -> Iterator[Path]:
    """Give a copy of the repository in which none of some stages was ever run, and whose cache has nothing of theirs.

    It is a git clone of the same commit, with the files of the working tree as they are (edited ones, and new ones that
    git does not ignore), and with all that the stages read and no stage makes. It is gone afterwards.

    Args:
        pipeline: of the repository.
        names: of the stages.
        purpose: a word for it, of which there can be one copy at a time.

    Raises:
        UserError: there is no git repository, another copy for this purpose is in use, or something can't be copied.
    """
    root = pipeline.root
    place = root / ".dvc" / "tmp" / "labdag" / purpose
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another `labdag {purpose}` is at work in {root}; wait for its end.") from None
        remove(place)  # what one that was killed has left
        try:
            try:
                copy = _copied(pipeline, list(names), place)
            except (OSError, GitError) as error:
                raise UserError(f"The repository can't be copied: {error}") from None
            yield copy
        finally:
            remove(place)


def _copied(pipeline: Pipeline, names: list[str], place: Path) -> Path:
    root = pipeline.root
    copy = _clone(pipeline, place, [*pipeline.made(), *pipeline.locks()], pipeline.sources(names))
    for lock, text in pipeline.locks_of_the_unrun().items():
        (copy / lock).write_text(text, encoding="utf-8")
    for name, path in pipeline.objects(names).items():
        target = copy / CACHE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)  # nobody writes into what is in a cache
        except OSError:
            shutil.copy2(path, target)
    _copy(root / ".dvc" / "config.local", copy / ".dvc" / "config.local")
    share(copy, copy / CACHE)
    return copy


def twin(pipeline: Pipeline, names: Iterable[str], place: Path, *, is_configured: bool = False) -> Path:
    """Make a copy of the repository at `place` that has recorded what it has, and shares its cache.

    It is a git clone of the same commit, with the files of the working tree as they are, but for what stages make: that
    comes from the cache when it is wanted.

    Args:
        pipeline: of the repository.
        names: of the stages that will be run there.
        place: of the copy, where nothing is yet.
        is_configured: whether the repository is such a copy itself, which knows where the cache is.

    Returns:
        The root of the DVC repository there.

    Raises:
        UserError: there is no git repository, or something can't be copied.
    """
    root = pipeline.root
    tracked = {name: stage for name in names if not (stage := pipeline.stages[name]).is_run}
    in_cache = [name for name in tracked if pipeline.objects([name])]
    spared = {out.path for name in in_cache for out in tracked[name].outs}
    try:
        cached = {out.path for stage in pipeline.stages.values() if stage.is_run for out in stage.outs if out.cached}
        copy = _clone(pipeline, place, cached, pipeline.sources(names) - spared)
        for lock in pipeline.locks():
            _copy(root / lock, copy / lock)
        _copy(root / ".dvc" / "config.local", copy / ".dvc" / "config.local")
    except (OSError, GitError) as error:
        raise UserError(f"The repository can't be copied: {error}") from None
    if not is_configured:
        share(copy, pipeline.cache)
    if in_cache:
        dvc(copy, "checkout", *in_cache)
    return copy


def at_commit(root: Path, commit: str, place: Path) -> Path:
    """Make a clone of the repository at a commit, which shares its cache and knows its experiments.

    Args:
        root: of the DVC repository.
        commit: its hash.
        place: of the clone, where nothing is yet.

    Returns:
        The root of the DVC repository there.

    Raises:
        UserError: git or DVC refuses, or the commit has no DVC repository.
    """
    top = git_top(root)
    copy = place / root.relative_to(top)
    cache = cache_of(root)
    try:
        _clone_git(top, place)
        git(place, "checkout", "--quiet", "--detach", commit)
        _fill_submodules(top, place)
        refresh(root, place)
    except GitError as error:
        raise UserError(f"The repository can't be cloned: {error}") from None
    if not (copy / ".dvc").is_dir():
        raise UserError(f"The commit {commit[:7]} has no DVC repository; commit what `dvc init` has made.")
    _copy(root / ".dvc" / "config.local", copy / ".dvc" / "config.local")
    remotes = near_remotes(copy)
    share(copy, cache, {name: os.path.normpath(root / os.path.relpath(path, copy)) for name, path in remotes.items()})
    return copy


def refresh(root: Path, place: Path) -> None:
    """Have a clone of the repository, which shares its objects, know its tags and experiments as they are now.

    Raises:
        GitError: git refuses.
    """
    refs = git(root, "for-each-ref", "--format=update %(refname) %(objectname)", EXPERIMENTS, TAGS).splitlines()
    known = [line for line in refs if (ref := line.split()[1]).startswith(TAGS) or EXPERIMENT.fullmatch(ref)]
    git(place, "update-ref", "--stdin", text="\n".join([*known, ""]))


def submodules(root: Path) -> list[str]:
    """The git submodules of a repository, by their paths from its top.

    Raises:
        GitError: git refuses.
    """
    staged = git(git_top(root), "ls-files", "-z", "--stage").split("\0")
    return [entry.partition("\t")[2] for entry in staged if entry.startswith("160000 ")]


def _fill_submodules(top: Path, place: Path) -> None:
    """Check the submodules of a clone out, from where the repository has them, if it has that commit of theirs."""
    if not (place / ".gitmodules").exists():
        return
    git(place, "submodule", "--quiet", "init")
    listed = git(place, "config", "--null", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    for key, _, path in (entry.partition("\n") for entry in listed.split("\0") if entry):
        name = f"{key.removesuffix('.path')}.url"
        with suppress(GitError):  # it is not checked out there
            git(top / path, "cat-file", "-e", git(place, "rev-parse", f":{path}").strip())
            git(place, "config", name, str(top / path))
            continue
        with suppress(GitError):  # the address is relative to that of the repository's own origin
            git(place, "config", name, git(top, "config", name).strip())
    git(place, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")


def save(
    pipeline: Pipeline,
    copy: Path,
    names: Iterable[str],
    name: str,
    message: str,
    root: Path,
    *,
    again: bool = False,
) -> tuple[str, str]:
    """Save what lies in a copy of a repository as an experiment of the repository.

    Args:
        pipeline: of the copy, or of another one like it.
        copy: the root of the copy.
        names: of the stages that were run there.
        name: of the experiment.
        message: of its commit.
        root: of the repository that it is for.
        again: whether it takes the place of one of the repository's that has this name; else that is refused.

    Returns:
        Its ref, and the hash of its commit.

    Raises:
        UserError, GitError: DVC or git refuses it.
    """
    names = list(names)
    untracked = git(copy, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    wanted = pipeline.locks() | pipeline.sources(names)
    added = [f"--include-untracked={path}" for path in untracked if path in wanted]
    run = [each for each in names if pipeline.stages[each].is_run]
    dvc(copy, "exp", "save", "--force", *added, "--name", name, "--message", message, *run)
    refs = git(copy, "for-each-ref", "--format=%(refname) %(objectname)", EXPERIMENTS).splitlines()
    ref, commit = next(line.split() for line in refs if line.split()[0].endswith(f"/{name}"))
    git(root, "fetch", "--quiet", "--no-write-fetch-head", git_top(copy), f"{'+' if again else ''}{ref}:{ref}")
    return ref, commit


def _clone(pipeline: Pipeline, place: Path, made: Iterable[str], sources: Iterable[str]) -> Path:
    """Clone the repository, and put the files of the working tree there, with `sources` and without what is `made`."""
    root = pipeline.root
    top = git_top(root)
    copy = place / root.relative_to(top)
    _clone_git(top, place)
    for name in sorted(sources):  # a folder before what lies in it
        _copy(root / name, copy / name)
    listed = git(top, "ls-files", "-z", "--cached", "--recurse-submodules")
    listed += git(top, "ls-files", "-z", "--others", "--exclude-standard")
    left_out = [root / path for path in made]
    for path in (top / name for name in listed.split("\0") if name):
        if any(path == out or out in path.parents for out in left_out):
            continue
        if path.is_symlink():
            _link(path, place / path.relative_to(top), top, place)
        elif path.is_file():
            _copy(path, place / path.relative_to(top))
    index = top / git(top, "rev-parse", "--git-path", "index").rstrip("\n")
    _copy(index, place / ".git" / "index")  # so that git tracks here what it tracks there
    return copy


def _clone_git(top: Path, place: Path) -> None:
    """Clone a git repository, with nothing checked out, where one commits and reaches remotes as there."""
    # The clone reads the repository's own objects, and copies none.
    git(top, "clone", "--quiet", "--shared", "--no-checkout", str(top), str(place))
    for name in ("user.name", "user.email"):
        with suppress(GitError):  # it is not set
            git(place, "config", name, git(top, "config", name).rstrip("\n"))
    with suppress(GitError):  # nothing of it is set
        for entry in git(top, "config", "--local", "--null", "--get-regexp", ACCESS).split("\0")[:-1]:
            name, _, value = entry.partition("\n")
            git(place, "config", "--add", name, value)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, links followed, if it is there and was not copied yet."""
    if not source.exists() or os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _link(source: Path, target: Path, top: Path, place: Path) -> None:
    """Make a link like `source`: to the same place, or if that is in the repository, to the same place in the copy."""
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aim = Path(os.path.normpath(source.parent / source.readlink()))
    with suppress(ValueError):  # it leads out of the repository
        aim = place / aim.relative_to(top)
    target.symlink_to(aim)


def require_commit(root: Path) -> None:
    """See to it that the repository has a commit.

    Raises:
        UserError: it has none, or is no git repository.
    """
    if is_without_git(root):
        raise UserError(f"Experiments belong to commits: {without_git(root)}")
    try:
        git_top(root)
    except GitError:
        raise UserError(f"Experiments belong to commits: {without_git(root)}") from None
    try:
        git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except GitError:
        raise UserError(
            f"{root} has no commit, and experiments belong to one: `git add . && git commit` first."
        ) from None


def dvc(root: Path, *arguments: str) -> str:
    """What a DVC command prints. It sends no analytics: the process that does goes on to write in a copy's `.dvc/tmp`.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=without_lent(os.environ) | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        said = (errors or lines or ["it said nothing"])[0].removeprefix("ERROR: ").removeprefix("unexpected error - ")
        raise UserError(f"`dvc {' '.join(arguments[: 2 if arguments[0] == 'exp' else 1])}` failed: {said}")
    return done.stdout
