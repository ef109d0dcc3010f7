"""`labdag retrain`: the newest commit made anew in a clone, held against the registered model, and registered."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from labdag.errors import UserError
from labdag.git import uncommitted
from labdag.pipeline.graph import Pipeline
from labdag.pipeline.workspace import at_commit
from labdag.retraining.gate import Gate, judge, read
from labdag.retraining.registry import check_name, register, versions, was_registered
from tests.conftest import is_gone, run, signed_in, wait_for

PIPELINE = """
stages:
  fetch:
    cmd: python log.py fetch
    deps: [log.py]
    outs: [raw]
    meta: {upstream: python log.py upstream, timeout: 5}
  train:
    cmd: python log.py train
    deps: [log.py, raw]
    params: [seed, lr]
    outs: [model.bin]
    metrics: [metrics.json]
    meta:
      summary: {accuracy: ".1%"}
      extremes: {class.*: ".1%"}
      seed: seed
artifacts:
  digits: {path: model.bin, type: model}
"""
PARAMS = """\
seed: 0
lr: 1.0
retrain:
  train: {minimum: {accuracy: 0.6}, may_lose: {class.*: 0.2}, better: accuracy, noise: 0.01}
"""
LOG = """
import json, os, sys, time, yaml
stage, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
source = os.environ["SOURCE"]
if stage == "upstream":
    text = open(source).read()
    if "broken" in text:
        sys.exit("Error: the checksum is another one")
    if "slow" in text:
        if "LOOKING" in os.environ:
            open(os.environ["LOOKING"], "w").write(str(os.getpid()))
        time.sleep(60)
    print(text)
    sys.exit()
with open(os.environ["RUNS"], "a") as file:
    print(stage, params["seed"], file=file)
if stage == "fetch":
    open("raw", "w").write(open(source).read())
else:
    if not isinstance(params["lr"], float):
        sys.exit(f"Error: params.yaml: lr is {params['lr']!r}, but should be a number.")
    time.sleep(float(os.environ.get("TAKES", 0)))
    open("model.bin", "w").write(f"{params['lr']} {params['seed']}")
    json.dump({"accuracy": 0.5 + params["lr"] / 10, "class": {"a": params["lr"] / 10, "b": 1 - params["lr"] / 10}},
              open("metrics.json", "w"))
"""


@pytest.fixture
def repository(toy: Callable[..., Path], prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SOURCE", str(tmp_path / "source"))
    (tmp_path / "source").write_text("one")
    (tmp_path / "runs").touch()
    folder = toy(PIPELINE, **{"params.yaml": PARAMS, "log.py": LOG})
    run("dvc", "remote", "add", "--quiet", "--default", "store", "../store", cwd=folder)
    run("git", "commit", "--quiet", "--all", "--message", "Add a remote", cwd=folder)
    return folder


def runs(folder: Path) -> list[str]:
    return (folder.parent / "runs").read_text().split("\n")[:-1]


def retrain(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run("labdag", "retrain", "train", *options, cwd=folder, check=False, **env)


def state_of(folder: Path) -> list[str]:
    """All that a user would notice of a change in a workspace."""
    status = run("git", "status", "--porcelain", cwd=folder).stdout
    head = run("git", "rev-parse", "HEAD", cwd=folder).stdout
    return [status, run("dvc", "status", "--json", cwd=folder).stdout, head]


def ref_of(folder: Path, experiment: str) -> str:
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps", cwd=folder).stdout.split()
    return next(ref for ref in refs if ref.endswith(f"/{experiment}"))


def set_param(folder: Path, name: str, value: Any) -> None:
    path = folder / "params.yaml"
    path.write_text(re.sub(rf"^{name}:.*", f"{name}: {value}", path.read_text(), flags=re.MULTILINE))
    run("git", "commit", "--quiet", "--all", "--message", f"Set {name}", cwd=folder)


def events(api: str, name: str) -> list[dict[str, Any]]:
    found = httpx.post(
        f"{api}/events/filter", json={"filter": {"event": {"name": [name]}}, "limit": 50}, auth=signed_in()
    )
    return list(found.raise_for_status().json()["events"])


def test_what_passes_the_gate_is_registered_and_what_is_unchanged_is_left_alone(
    repository: Path, tmp_path: Path, prefect_server: str
) -> None:
    params = repository / "params.yaml"
    params.write_text(params.read_text().replace("lr: 1.0", "lr: nonsense"))  # being edited: of no concern
    for number in range(6):
        (repository / f"new {number}").touch()
    before = state_of(repository)

    first = retrain(repository, "-S", "seed=fresh", "-S", "lr=2.0")
    assert first.returncode == 0, first.stderr
    assert "Registered: train-retrain-1 passed the gate, and is digits@v0.0.1" in first.stdout
    head = run("git", "rev-parse", "--short=7", "HEAD", cwd=repository).stdout.strip()
    left_out = "params.yaml, new 0, new 1, new 2, new 3 and 2 more"
    said = f"Taken is the commit {head}, without what is not committed: {left_out}.\n"
    assert said in first.stderr + first.stdout
    assert re.search(r"accuracy ≥ 60.0% +70.0% +yes", first.stdout)
    assert state_of(repository) == before
    assert [path.name for path in (repository / ".dvc" / "tmp" / "labdag" / "retrain").iterdir()] == ["train.lock"]
    seed = int(runs(repository)[-1].split()[1])
    assert seed > 0

    # DVC and GTO know the version, elsewhere, too: all that it consists of is on the remote.
    elsewhere = tmp_path / "elsewhere"
    run("git", "clone", "--quiet", repository, elsewhere, cwd=tmp_path)
    run("dvc", "artifacts", "get", ".", "digits", "--rev", "v0.0.1", "--out", "got", cwd=elsewhere)
    assert (elsewhere / "got").read_text() == f"2.0 {seed}"
    assert re.search(r"digits\b.*v0\.0\.1", run("gto", "show", cwd=elsewhere).stdout)
    assert run("git", "tag", "--points-at", "digits@v0.0.1", cwd=repository).stdout == "digits@v0.0.1\n"
    shown = json.loads(run("dvc", "exp", "show", "--json", "--all-commits", cwd=repository).stdout)
    assert "train-retrain-1" in json.dumps(shown)

    count = len(runs(repository))
    again = retrain(repository, "-S", "seed=fresh", "-S", "lr=2.0")
    assert again.returncode == 0, again.stderr
    told = "UpToDate: nothing has changed since train-retrain-1, registered as digits@v0.0.1"
    assert told in again.stdout
    assert len(runs(repository)) == count

    (reason,) = {each["payload"]["reason"] for each in events(prefect_server, "labdag.retrain.registered")
                 if each["payload"]["target"] == "train"}  # fmt: skip
    assert reason == "train-retrain-1 passed the gate, and is digits@v0.0.1"

    # Better than the champion, but one class lost too much; then better by no more than chance.
    worse = retrain(repository, "-S", "seed=fresh", "-S", "lr=4.5")
    assert worse.returncode == 0, worse.stderr
    why = "NotRegistered: train-retrain-2 did not pass the gate, against digits@v0.0.1: class.* loses no more than"
    assert why in worse.stdout
    assert "class.b 80.0% → 55.0%" in worse.stdout
    chance = retrain(repository, "-S", "seed=fresh", "-S", "lr=2.2")
    assert "accuracy more than the champion's by over 2.8 points: 70.0% → 72.0%" in chance.stdout
    better = retrain(repository, "-S", "seed=fresh", "-S", "lr=2.4")
    assert "Registered: train-retrain-4 passed the gate, and is digits@v0.0.2" in better.stdout
    other = retrain(repository, "-S", "seed=fresh", "-S", "lr=2.2")  # known, but not held against this champion
    assert "train-retrain-5 did not pass the gate, against digits@v0.0.2" in other.stdout
    assert state_of(repository) == before


def test_files_that_are_not_committed_are_told_once_each(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: touch a, outs: [a]}\n", one="1", two="2", three="3")
    assert uncommitted(folder) == []
    run("git", "mv", "one", "renamed", cwd=folder)
    run("git", "rm", "--quiet", "--cached", "two", cwd=folder)
    (folder / "three").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "new ä").touch()
    assert sorted(uncommitted(folder / "sub")) == ["one", "renamed", "sub/new ä", "three", "two"]


def test_a_failure_leaves_no_trace_and_raises_an_event(repository: Path, prefect_server: str) -> None:
    before = state_of(repository), run("git", "for-each-ref", cwd=repository).stdout
    for options, sentence in (
        (("-S", "lr=high"), "train failed: params.yaml: lr is 'high', but should be a number."),
        (("-S", "lrr=1.0"), "params.yaml has no param 'lrr'."),
        (("-S", "lr=1.0,2.0"), "lr is to have one value here; `labdag sweep` tries many."),
        (("--branch", "nightly"), "has no branch 'nightly' with a commit; it has "),
        (("--remote", "origin"), "has no git remote 'origin'; it has none."),
        (("--remote", "--upload-pack=touch /tmp/labdag-was-attacked"), "has no git remote '--upload-pack="),
        (("--model", "digit"), "No artifact of dvc.yaml that train makes is called 'digit'; there are digits."),
    ):
        done = retrain(repository, *options)
        assert done.returncode == 1, (options, done.stdout)
        assert sentence in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert before == (state_of(repository), run("git", "for-each-ref", cwd=repository).stdout), options
    assert [path.name for path in (repository / ".dvc" / "tmp" / "labdag" / "retrain").iterdir()] == ["train.lock"]
    (repository.parent / "link").symlink_to(repository)
    code = "from labdag.flows.retrain import retrain; retrain('nothing', root='link')"
    linked = run("python", "-c", code, cwd=repository.parent, check=False)
    assert "Nothing is called 'nothing'. Did you mean 'train'?" in linked.stderr
    run("git", "update-ref", "-d", "HEAD", cwd=repository)
    assert "has no commit, and experiments belong to one" in retrain(repository).stderr.splitlines()[-1]
    reasons = [each["payload"]["reason"] for each in events(prefect_server, "labdag.retrain.failed")]
    assert "train failed: params.yaml: lr is 'high', but should be a number." in reasons
    assert any("params.yaml has no param 'lrr'." in reason for reason in reasons)


def test_data_that_changed_upstream_are_fetched_anew(repository: Path, tmp_path: Path) -> None:
    run("dvc", "repro", "fetch", cwd=repository)
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "Fetch", cwd=repository)
    (tmp_path / "source").write_text("since then")
    (tmp_path / "runs").write_text("")
    assert "Registered" in retrain(repository, "-S", "lr=2.0").stdout
    assert [line.split()[0] for line in runs(repository)] == ["fetch", "train"]
    (tmp_path / "source").write_text("two")
    changed = retrain(repository, "-S", "lr=2.0")
    assert "fetch: what it fetches has changed upstream; it is fetched anew." in changed.stderr
    assert [line.split()[0] for line in runs(repository)] == ["fetch", "train", "fetch", "train"]

    # The branch still has what was there first: another change does not bring that back.
    set_param(repository, "seed", 7)
    assert "train-retrain-3" in retrain(repository, "-S", "lr=2.0").stdout
    lock = run("git", "show", f"{ref_of(repository, 'train-retrain-3')}:dvc.lock", cwd=repository).stdout
    assert hashlib.md5(b"two").hexdigest() in lock
    # Once it has what is there now, nothing is fetched anew.
    run("dvc", "repro", "--force", "fetch", cwd=repository)
    set_param(repository, "seed", 8)
    count = len(runs(repository))
    assert "train-retrain-4" in retrain(repository, "-S", "lr=2.0").stdout
    assert [line.split()[0] for line in runs(repository)[count:]] == ["train"]

    (tmp_path / "source").write_text("broken")
    broken = retrain(repository, "-S", "lr=2.0")
    assert broken.returncode == 1
    assert "Error: fetch: the data upstream can't be taken: the checksum is another one" in broken.stderr
    (tmp_path / "source").write_text("slow")
    slow = retrain(repository, "-S", "lr=2.0")
    assert slow.returncode == 1
    assert "Error: fetch: the look upstream took more than 5 s, and was ended." in slow.stderr


def test_a_retraining_that_was_killed_goes_on_with_the_same_seed(repository: Path) -> None:
    command = ["labdag", "retrain", "train", "-S", "seed=fresh", "-S", "lr=3.0"]
    with subprocess.Popen(command, cwd=repository, env=os.environ | {"TAKES": "20"}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, start_new_session=True) as killed:  # fmt: skip
        try:
            wait_for(lambda: len(runs(repository)) == 2, 60)
        finally:
            killed.send_signal(signal.SIGKILL)
    done = retrain(repository, "-S", "seed=fresh", "-S", "lr=3.0")
    assert "Registered: train-retrain-1" in done.stdout, done.stderr
    assert [line.split()[0] for line in runs(repository)] == ["fetch", "train", "train"]
    assert len({line.split()[1] for line in runs(repository)}) == 1


def test_what_waited_for_its_registration_is_held_against_the_new_champion(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    refused = retrain(repository, "-S", "lr=2.0")
    assert refused.returncode == 1
    assert re.search(r"Error: `dvc push` failed: .*/store/files", refused.stderr)
    (tmp_path / "store").unlink()
    other = retrain(repository, "-S", "lr=3.0")
    assert "Registered: train-retrain-2 passed the gate, and is digits@v0.0.1" in other.stdout
    assert "NotRegistered: train-retrain-3 did not pass" in retrain(repository, "-S", "lr=2.0").stdout


def test_a_clone_that_was_left_half_filled_is_filled(repository: Path, tmp_path: Path) -> None:
    data = repository / "data"
    data.mkdir()
    for name in "abcd":
        (data / name).write_text(name)
    run("dvc", "add", "--quiet", "data", cwd=repository)
    dvc_yaml = repository / "dvc.yaml"
    dvc_yaml.write_text(dvc_yaml.read_text().replace("[log.py, raw]", "[log.py, raw, data]"))
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "Add data", cwd=repository)
    (tmp_path / "source").write_text("slow")
    clone = repository / ".dvc" / "tmp" / "labdag" / "retrain" / "train"
    looking = tmp_path / "looking"
    with subprocess.Popen(["labdag", "retrain", "train"], cwd=repository, env=os.environ | {"LOOKING": str(looking)},
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:  # fmt: skip
        wait_for(looking.exists, 60)
        killed.kill()
    wait_for(lambda: is_gone(int(looking.read_text() or 0)))  # the look ends with it
    (clone / "data").mkdir()
    (clone / "data" / "a").write_text("a")
    (tmp_path / "source").write_text("one")
    with subprocess.Popen(["sleep", "300"], cwd=clone) as stray:  # something that the killed run has left at work
        assert "Registered" in retrain(repository).stdout
        assert stray.wait(1) == -signal.SIGKILL
    assert "nfiles: 4" in run("git", "show", "digits@v0.0.1:data.dvc", cwd=repository).stdout


def test_a_branch_of_a_remote_is_retrained_and_gets_the_version(repository: Path, tmp_path: Path) -> None:
    central, other = tmp_path / "central.git", tmp_path / "other"
    run("git", "init", "--quiet", "--bare", central, cwd=tmp_path)
    run("git", "remote", "add", "origin", central, cwd=repository)
    run("git", "push", "--quiet", "origin", "HEAD:refs/heads/main", cwd=repository)
    run("git", "clone", "--quiet", "--branch", "main", central, other, cwd=tmp_path)
    set_param(other, "lr", 3.5)
    run("git", "push", "--quiet", cwd=other)
    before = run("git", "for-each-ref", "refs/heads", "refs/remotes", cwd=repository).stdout
    done = retrain(repository, "--remote", "origin", "--branch", "main")
    assert "is digits@v0.0.1" in done.stdout, done.stderr
    assert run("git", "for-each-ref", "refs/heads", "refs/remotes", cwd=repository).stdout == before
    for place in (central, repository):
        assert "lr: 3.5" in run("git", "show", "digits@v0.0.1:params.yaml", cwd=place).stdout
    assert ref_of(central, "train-retrain-1")

    # On another machine all that is known, too: that nothing has changed, what is the champion, and the names taken.
    same = retrain(other, "--remote", "origin")
    assert "UpToDate: nothing has changed since train-retrain-1, registered as digits@v0.0.1" in same.stdout, (
        same.stderr
    )
    assert run("git", "tag", cwd=other).stdout == "digits@v0.0.1\n"
    set_param(other, "lr", 3.9)
    run("git", "push", "--quiet", cwd=other)
    # The remote is known by a name that the repository's own settings explain.
    run("git", "config", f"url.{central}.insteadOf", "school:labs", cwd=other)
    run("git", "remote", "set-url", "origin", "school:labs", cwd=other)
    hook = central / "hooks" / "update"  # the remote takes no tag: it was given to another commit meanwhile
    hook.write_text("#!/bin/sh\ncase $1 in refs/tags/*) exit 1; esac\n")
    hook.chmod(0o755)
    refused = retrain(other, "--remote", "origin")
    assert refused.returncode == 1
    assert "Error: train-retrain-2 passed the gate, but the git remote 'origin' does not take digits@v0.0.2" in (
        refused.stderr
    )
    assert run("git", "tag", cwd=other).stdout == "digits@v0.0.1\n"
    assert "train-retrain-2" not in run("git", "for-each-ref", "refs/exps", cwd=central).stdout
    hook.unlink()
    count = len(runs(repository))
    again = retrain(other, "--remote", "origin")
    assert "Registered: train-retrain-2 passed the gate, and is digits@v0.0.2" in again.stdout, again.stderr
    assert len(runs(repository)) == count
    assert "85.0% → 89.0%" in again.stdout  # the champion's, from DVC's remote
    assert ref_of(central, "train-retrain-2")
    assert "digits@v0.0.2" in run("git", "tag", cwd=central).stdout


def test_an_import_is_brought_up_to_date(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a")
    run("dvc", "import-url", "--quiet", tmp_path / "table.csv", "table.csv", cwd=repository)
    (repository / "tracked.csv").write_text("b")
    run("dvc", "add", "--quiet", "tracked.csv", cwd=repository)
    dvc_yaml = repository / "dvc.yaml"
    dvc_yaml.write_text(dvc_yaml.read_text().replace("[log.py, raw]", "[log.py, raw, table.csv, tracked.csv]"))
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "Import a table", cwd=repository)
    run(
        "dvc", "exp", "save", "--name", "train-retrain-1", "tracked.csv.dvc", cwd=repository
    )  # the user's own, which is left alone
    mine = run("git", "rev-parse", ref_of(repository, "train-retrain-1"), cwd=repository).stdout
    assert "Registered: train-retrain-2" in retrain(repository, "-S", "lr=2.0").stdout
    assert run("git", "rev-parse", ref_of(repository, "train-retrain-1"), cwd=repository).stdout == mine
    assert "UpToDate" in retrain(repository, "-S", "lr=2.0").stdout
    (tmp_path / "table.csv").write_text("b, and more")
    before = state_of(repository)
    done = retrain(repository, "-S", "lr=2.0")
    assert "NotRegistered" in done.stdout, done.stderr
    assert state_of(repository) == before
    new = ref_of(repository, "train-retrain-3")
    assert run("git", "diff", "--name-only", "HEAD", new, "--", "table.csv.dvc", cwd=repository).stdout

    # All that the version consists of is on the remote, tracked files, too.
    elsewhere = tmp_path / "elsewhere"
    run("git", "clone", "--quiet", "--branch", "digits@v0.0.1", repository, elsewhere, cwd=tmp_path)
    run("dvc", "pull", "--quiet", cwd=elsewhere)
    assert run("dvc", "status", cwd=elsewhere).stdout == "Data and pipelines are up to date.\n"


def test_all_that_a_result_depends_on_counts(toy: Callable[..., Path]) -> None:
    folder = toy(
        """
stages:
  prepare: {cmd: mkdir -p data/made && date > data/made/a, outs: [data/made]}
  train: {cmd: mkdir -p model && cp data/raw model/, deps: [data], outs: [model]}
  always: {cmd: date > now, deps: [data/raw], outs: [now], always_changed: true}
artifacts:
  inside: {path: model/raw}
  other: {path: data/raw}
"""
    )
    (folder / "data").mkdir()
    (folder / "data" / "raw").write_text("a")
    with Pipeline(folder) as pipeline:
        names = ["prepare", "train"]
        before = pipeline.fingerprint(names)
        run("dvc", "repro", "prepare", cwd=folder)
        assert pipeline.fingerprint(names) == before  # what is made is no input
        (folder / "data" / "raw").write_text("b")
        assert pipeline.fingerprint(names) != before
        assert pipeline.always_run([*names, "always"]) == ["always"]
        assert pipeline.artifacts(names) == ["inside"]


def test_a_clone_at_a_commit_has_its_submodules(toy: Callable[..., Path], tmp_path: Path) -> None:
    library = tmp_path / "library"
    run("git", "init", "--quiet", library, cwd=tmp_path)
    (library / "code.py").write_text("1")
    run("git", "add", "--all", cwd=library)
    run("git", "commit", "--quiet", "--message", "Start", cwd=library)
    folder = toy("stages: {}")
    run("git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../library", "my lib", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Add a library", cwd=folder)
    shutil.rmtree(library)  # as without a network
    commit = run("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()
    assert (at_commit(folder, commit, tmp_path / "clone") / "my lib" / "code.py").read_text() == "1"


def test_versions_are_numbered_and_can_be_taken_back(repository: Path) -> None:
    def commit(text: str) -> str:
        (repository / "note").write_text(text)
        run("git", "add", "note", cwd=repository)
        run("git", "commit", "--quiet", "--message", text, cwd=repository)
        return run("git", "rev-parse", "HEAD", cwd=repository).stdout.strip()

    assert versions(repository, "sub:digits") == []
    commits = [commit(str(number)) for number in range(11)]
    for number, each in enumerate(commits[:9], 1):  # as GTO does it, which takes a second each time
        run("git", "tag", "--annotate", "--message", "good", f"sub=digits@v0.0.{number}", each, cwd=repository)
    made = [register(repository, "sub:digits", each, "good") for each in commits[9:]]
    assert [each.tag for each in made] == ["sub=digits@v0.0.10", "sub=digits@v0.0.11"]
    assert [each.name for each in versions(repository, "sub:digits")][:2] == ["v0.0.11", "v0.0.10"]
    with pytest.raises(UserError, match="already registered"):
        register(repository, "sub:digits", commits[0], "again")
    run("gto", "deprecate", "sub:digits", "v0.0.11", cwd=repository)
    assert versions(repository, "sub:digits")[0].name == "v0.0.10"
    assert was_registered(repository, "sub:digits", commits[-1])
    assert not was_registered(repository, "digits", commits[-1])


def test_names_that_no_tag_can_have_are_told() -> None:
    for name in ("a", "sub/dir:lenet_digits", "1-b/c"):
        check_name(name)
    for name in ("", "my model", "sub dir:model", "model_", "modèle", "model.pt"):
        with pytest.raises(UserError, match="can't be registered: GTO wants names of"):
            check_name(name)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (None, "params.yaml: retrain.lab is missing: it says what a retrained lab must reach"),
        ({}, "params.yaml: retrain.lab asks for nothing"),
        ({"minimun": {"accuracy": 1}}, "retrain.lab.minimun is nothing that a gate can ask. Did you mean 'minimum'?"),
        ({"minimum": {"accuracy": "much"}}, "retrain.lab.minimum.accuracy is 'much': input should be a valid number"),
        ({"better": "accuracy", "noise": -1}, "retrain.lab.noise is -1: input should be greater than 0"),
    ],
)
def test_a_gate_that_is_wrong_is_told(block: Any, sentence: str) -> None:
    params = {"retrain": {} if block is None else {"lab": block}}
    with pytest.raises(UserError, match=re.escape(sentence)):
        read(params, "lab")


@pytest.mark.parametrize(
    ("gate", "champion", "noise", "is_met"),
    [
        (Gate(minimum={"accuracy": 0.9}), None, {}, [True]),
        (Gate(minimum={"accuracy": 0.91}, maximum={"loss": 0.2}), None, {}, [False, True]),
        (Gate(minimum={"bad": 0.0}), None, {}, [False]),  # it is nan
        (Gate(may_lose={"c.*": 0.1}, better="accuracy"), None, {}, [True, True]),
        (Gate(may_lose={"bad": 0.1}, may_rise={"bad": 0.1}, better="bad"), None, {}, [False, False, False]),
        (Gate(may_rise={"loss": 0.1}), {"loss": 0.11}, {}, [True]),
        (Gate(may_rise={"loss": 0.1}), {"loss": 0.09}, {}, [False]),
        (Gate(may_lose={"c.*": 0.1}), {"c.a": 0.5, "c.b": 0.89}, {}, [True]),
        (Gate(may_lose={"c.*": 0.1}), {"c.a": 0.5, "c.b": 0.91}, {}, [False]),
        (Gate(may_lose={"c.*": 0.1}), {"c.a": 0.5, "c.gone": 0.91}, {}, [False]),
        (Gate(may_lose={"*": 1.0}), {"accuracy": 0.9, "bad": 0.5, "c.a": 0.5}, {}, [False]),  # nan is a loss
        (Gate(better="accuracy"), {"accuracy": 0.8}, {"accuracy": (0.03, 3)}, [True]),
        (Gate(better="accuracy"), {"accuracy": 0.8}, {"accuracy": (0.04, 3)}, [False]),
        (Gate(better="accuracy", noise=0.01), {"accuracy": 0.8}, {"accuracy": (0.04, 3)}, [False]),
        (Gate(better="accuracy", noise=0.01), {"accuracy": 0.8}, {}, [True]),
        (Gate(better="accuracy"), {"accuracy": 0.1}, {}, [False]),
        (Gate(better="accuracy"), {"other": 0.1}, {}, [True]),
        (Gate(better="loss", less_is_better=True, noise=0.01), {"loss": 0.3}, {}, [True]),
        (Gate(better="loss", less_is_better=True, noise=0.01), {"loss": 0.1}, {}, [False]),
    ],
)
def test_the_gate_decides(gate: Gate, champion: Any, noise: Any, is_met: list[bool]) -> None:
    now = {"accuracy": 0.9, "loss": 0.2, "bad": float("nan"), "c.a": 0.6, "c.b": 0.8}
    assert [check.is_met for check in judge(gate, now, champion, noise, {"accuracy": ".1%"})] == is_met


def test_a_gate_that_asks_for_an_unknown_figure_is_told() -> None:
    with pytest.raises(UserError, match=r"the metrics have no such number\. Did you mean 'accuracy'"):
        judge(Gate(minimum={"acuracy": 0.5}), {"accuracy": 1.0}, None, {}, {})
