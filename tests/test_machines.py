"""What users' machines are like: their proxies, their homes, their names, and how their commands end."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from labdag.environment import LENT, lend, search_path, without_lent
from labdag.errors import UserError
from labdag.execution.execute import exit_of
from labdag.execution.journal import Journal
from labdag.files import LONGEST, file_name
from labdag.orchestration import database, proxies, services
from labdag.pipeline.graph import Stage, load
from tests.conftest import give_database, run, wait_for

ONE = "stages:\n  a: {cmd: 'echo 1 > a', outs: [a]}\n"
SOCKS = ("socks://127.0.0.1:7891/", "socks5h://127.0.0.1:7891")
ELSEWHERE = "http://prefect.example.org/api"


def test_python_is_the_users_own_unless_labdag_is_called_out_of_its_environment(
    toy: Callable[..., Path], tmp_path: Path, prefect_server: str
) -> None:
    folder = toy("stages:\n  a: {cmd: 'python -c \"import sys; print(sys.prefix)\" > a', outs: [a]}\n")
    labdag, mine = Path(sys.executable).parent / "labdag", tmp_path / "python"
    mine.write_text("#!/bin/sh\necho mine\n")
    mine.chmod(0o755)
    bare = {"PATH": os.defpath, "VIRTUAL_ENV": "", "CONDA_PREFIX": "", "PREFECT_API_URL": prefect_server}
    for environment, expected in (
        (bare, sys.prefix),
        ({"PATH": os.pathsep.join([str(tmp_path), str(labdag.parent), os.defpath])}, "mine"),
        ({"PATH": os.pathsep.join([str(tmp_path), os.defpath]), "VIRTUAL_ENV": str(tmp_path)}, "mine"),
    ):
        run(labdag, "run", "--force", cwd=folder, check=True, **bare | environment)
        assert (folder / "a").read_text() == f"{expected}\n"


@pytest.mark.parametrize("note", ["pipx_metadata.json", "uv-receipt.toml"])
def test_no_stage_runs_in_an_environment_of_a_tool(note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert search_path({"PATH": "/usr/bin"}) == f"{tmp_path / 'bin'}{os.pathsep}/usr/bin"
    (tmp_path / "link").symlink_to(tmp_path)
    through_a_link = f"/usr/bin{os.pathsep}{tmp_path / 'link' / 'bin'}"
    assert search_path({"PATH": through_a_link}) == through_a_link
    (tmp_path / note).touch()
    assert search_path({"PATH": "/usr/bin"}) == "/usr/bin"


def test_outputs_that_the_cache_has_lost_are_named(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy("stages:\n  a: {cmd: 'cat code > a; exit $(cat code)', outs: [a], deps: [code]}\n", code="0")
    run("labdag", "run", cwd=folder, PREFECT_API_URL=prefect_server)
    shutil.rmtree(folder / ".dvc" / "cache")
    (folder / "a").unlink()
    (folder / "code").write_text("3")
    done = run("labdag", "run", cwd=folder, check=False, PREFECT_API_URL=prefect_server)
    assert "Its last good outputs could not be put back: DVC's cache has lost a" in done.stdout + done.stderr


def test_outputs_that_were_never_in_the_cache_are_put_back_all_the_same(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    command = "echo broken > o; mkdir -p d; cp i d/x; test $(cat i) != 3 && cp i o"
    folder = toy(f"stages:\n  a: {{cmd: ['rm -rf d', '{command}'], deps: [i], outs: [o, d]}}\n", i="1\n")
    run("labdag", "run", "--no-commit", cwd=folder, PREFECT_API_URL=prefect_server)
    (folder / "i").write_text("3\n")
    for option in ("--no-commit", "--no-run-cache"):
        done = run("labdag", "run", option, cwd=folder, check=False, PREFECT_API_URL=prefect_server)
        assert done.returncode == 1
        assert "could not be put back" not in done.stdout + done.stderr
        assert (folder / "o").read_text() == "1\n"
        assert (folder / "d/x").read_text() == "1\n"


@pytest.mark.parametrize("proxy", SOCKS)
def test_a_socks_proxy_is_not_asked_for_a_server_of_this_machine(
    proxy: str, toy: Callable[..., Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy("stages:\n  a: {cmd: 'env > a', outs: [{a: {cache: false}}]}\n")
    desktop = {"all_proxy": proxy, "ALL_PROXY": proxy, "http_proxy": "http://127.0.0.1:1", "no_proxy": "example.org"}
    for name, value in desktop.items():
        monkeypatch.setenv(name, value)
    done = run("labdag", "run", cwd=folder, PREFECT_API_URL=prefect_server)
    assert "1 stage: 1 run, 0 reused" in done.stdout
    seen = (folder / "a").read_text().splitlines()
    assert {f"{name}={value}" for name, value in desktop.items()} <= set(seen), "the command gets them as they are"
    assert not any(line.startswith(LENT) for line in seen)


def test_a_server_that_a_socks_proxy_keeps_out_of_reach_is_told(toy: Callable[..., Path]) -> None:
    done = run("labdag", "run", cwd=toy(ONE), check=False, PREFECT_API_URL=ELSEWHERE, all_proxy=SOCKS[0])
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: all_proxy={SOCKS[0]} names a SOCKS proxy, through which Prefect's client can't reach {ELSEWHERE}. "
        "Name an HTTP proxy in http_proxy, or exempt the server (no_proxy=prefect.example.org), or install "
        "httpx[socks] and write the proxy's address with socks5://.\n"
    )


def test_doctor_tells_of_a_socks_proxy(toy: Callable[..., Path]) -> None:
    folder = toy(ONE)
    done = run("labdag", "doctor", cwd=folder, check=False, all_proxy=SOCKS[0])
    assert re.search(rf"proxy +note +all_proxy={re.escape(SOCKS[0])}: not asked", done.stdout), done.stdout
    done = run("labdag", "doctor", cwd=folder, check=False, all_proxy=SOCKS[0], PREFECT_API_URL=ELSEWHERE)
    assert re.search("proxy +bad +all_proxy=.* names a SOCKS proxy", done.stdout), done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("url", "environment", "left"),
    [
        ("", {"all_proxy": SOCKS[0]}, set()),
        ("http://[::1]:4200/api", {"all_proxy": SOCKS[0], "http_proxy": SOCKS[1]}, set()),
        (ELSEWHERE, {"all_proxy": SOCKS[0], "no_proxy": "example.org"}, set()),
        (ELSEWHERE, {"all_proxy": SOCKS[0], "NO_PROXY": " .example.org , x"}, set()),
        (ELSEWHERE, {"all_proxy": SOCKS[0], "http_proxy": "http://proxy:1"}, {"http_proxy"}),
        (ELSEWHERE, {"HTTPS_PROXY": SOCKS[0], "ALL_PROXY": "http://proxy:1"}, {"ALL_PROXY"}),
    ],
)
def test_proxies_that_are_not_taken_are_out_of_sight(url: str, environment: dict[str, str], left: set[str]) -> None:
    before = dict(environment)
    for _ in range(2):
        assert proxies.settle(environment, url) is None
        assert set(proxies.variables(environment)) == left
        assert {"127.0.0.1", "localhost", "::1"} <= set(environment["no_proxy"].split(","))
    assert without_lent(environment) == before


def test_a_proxy_in_the_way_is_named_and_left_alone() -> None:
    environment = {"https_proxy": "SOCKS4://proxy:1", "no_proxy": "example.com"}
    told = proxies.settle(environment, "https://prefect.example.org/api")
    assert told is not None
    assert told.startswith("https_proxy=SOCKS4://proxy:1 names a SOCKS proxy")
    assert proxies.variables(environment) == ["https_proxy"]


def test_variables_that_are_lent_are_as_before_for_stages() -> None:
    environment = {"A": "1", "B": "2"}
    lend(environment, A="3", B=None, C="4")
    lend(environment, A=None, C="5")
    assert (environment["C"], "A" in environment) == ("5", False)
    assert without_lent(environment) == {"A": "1", "B": "2"}


def homes(folder: Path) -> dict[str, str]:
    """Homes of Prefect's in some state, by what it is."""
    for name, profiles in (
        ("plain", '[profiles.a]\nPREFECT_LOGGING_LEVEL = "INFO"\n'),
        ("no ephemeral", '[profiles.a]\nPREFECT_SERVER_EPHEMERAL_ENABLED = "false"\n'),
        ("broken", "[profiles.a]\n"),
    ):
        (folder / name).mkdir()
        (folder / name / "profiles.toml").write_text(f'active = "a"\n{profiles}')
        (folder / name / "prefect.db").write_text("no database")
    return {each.name: str(each) for each in sorted(folder.iterdir())} | {"none": "/proc/nowhere"}


def test_a_run_without_a_server_neither_reads_nor_writes_the_users_prefect(
    toy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = toy(ONE)
    (tmp_path / "homes").mkdir()
    for name, home in homes(tmp_path / "homes").items():
        done = run("labdag", "run", "--force", cwd=folder, PREFECT_HOME=home)
        assert "1 stage: 1 run, 0 reused" in done.stdout, (name, done.stderr)
        assert "Traceback" not in done.stderr
    for each in (tmp_path / "homes").iterdir():
        assert (each / "prefect.db").read_text() == "no database"
    with sqlite3.connect(services.home_of(folder) / "prefect.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM flow_run").fetchone()
    assert count == 4, "all are there for the UI of `labdag up`"


def test_profiles_of_prefect_that_are_no_toml_get_a_sentence(toy: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text("[profiles.x\n")
    folder = toy(ONE)
    sentence = f"Error: Prefect can't read its profiles in {tmp_path}/profiles.toml: Expected ']' at the end"
    for command in (["run"], ["sweep", "a", "-S", "x=1"], ["retrain", "a"], ["up"], ["serve"], ["doctor"]):
        done = run("labdag", *command, cwd=folder, check=False, PREFECT_HOME=str(tmp_path))
        (line,) = done.stderr.splitlines()
        assert line.startswith(sentence), command
    assert "1 will run" in run("labdag", "plan", cwd=folder, PREFECT_HOME=str(tmp_path)).stdout


def test_a_run_that_died_without_a_server_is_marked_by_the_next_one(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: 'touch begun; test -e fast || sleep 100; echo 1 > a', outs: [a]}\n")
    with subprocess.Popen(["labdag", "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as dying:
        wait_for((folder / "begun").exists, 120)
        dying.kill()
    (folder / "fast").touch()
    done = run("labdag", "run", cwd=folder)
    assert "Its flow run is marked Crashed." in done.stderr
    assert "1 stage: 1 run, 0 reused" in done.stdout


def test_a_database_that_cannot_be_read_is_kept_and_a_new_one_is_begun(prefect_home: Path, tmp_path: Path) -> None:
    give_database(prefect_home, tmp_path)
    home = services.home_of(tmp_path)
    assert database.put_aside(home) is None
    with sqlite3.connect(home / "prefect.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00'")
    told = database.put_aside(home)
    assert told == (
        "Prefect's database of past runs was written by a newer version of Prefect. "
        f"It is kept as {home}/prefect.db.1, and a new one is begun."
    )
    shutil.copy(prefect_home / "prefect.db", home)
    with (home / "prefect.db").open("r+b") as file:
        file.write(b"x" * 4096)
    told = database.put_aside(home)
    assert told is not None
    assert re.match(r"Prefect's database of past runs is broken \(.*\)\. It is kept as .*/prefect\.db\.2, and", told)
    assert not (home / "prefect.db").exists()
    assert database.put_aside(home) is None


def test_a_broken_database_of_the_project_is_one_warning(toy: Callable[..., Path]) -> None:
    folder = toy(ONE)
    (services.home_of(folder) / "prefect.db").write_text("no database")
    done = run("labdag", "run", cwd=folder)
    assert "1 stage: 1 run, 0 reused" in done.stdout
    assert done.stderr.count("Warning: Prefect's database of past runs is broken") == 1
    assert "Traceback" not in done.stderr


def test_letters_outside_ascii_in_a_path(
    empty_repository: Path, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    folder = Path(shutil.copytree(empty_repository, tmp_path / "张伟" / "Übung", symlinks=True))
    (folder / "dvc.yaml").write_text("stages:\n  a: {cmd: 'cp params.yaml a', params: [x], outs: [a]}\n")
    (folder / "params.yaml").write_text("x: 1\n")
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Start", cwd=folder)
    for locale in ("C.UTF-8", "C"):
        assert ", 0 failed" in run("labdag", "sweep", "a", "-S", f"x=1,{locale}", cwd=folder, LC_ALL=locale).stdout
    run("labdag", "run", cwd=folder)
    assert "1 output: 1 the same" in run("labdag", "verify", cwd=folder).stdout
    assert not [path for path in (tmp_path / "张伟").iterdir() if path != folder], "no scraps"


LONG = "一个特别长的数据集名称" * 9


def test_names_of_any_letters_and_length(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy(
        f"stages:\n  训练:\n    matrix: {{数据: [甲, 乙], 模型: [{LONG}]}}\n"
        "    cmd: echo 1/2; echo 1 > ${item.数据}; test ! -e stop\n"
        "    outs: ['${item.数据}']\n"
        "    meta: {progress: '(?P<done>[0-9])/(?P<total>[0-9])'}\n"
    )
    (folder / "stop").touch()
    done = run("labdag", "run", cwd=folder, check=False, PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    assert f"训练@甲-{LONG} failed: its command exited with 1" in done.stderr
    (folder / "stop").unlink()
    done = run("labdag", "run", cwd=folder, PREFECT_API_URL=prefect_server)
    assert "2 stages: 2 run, 0 reused" in done.stdout
    assert "2 unchanged" in run("labdag", "plan", cwd=folder).stdout


def test_a_file_is_named_after_any_text_and_each_after_its_own() -> None:
    assert file_name("train@a b") == "train@a b"
    assert file_name("sub/dvc.yaml:训练") == "sub%2Fdvc.yaml%3A训练"
    texts = ["长" * 100, "长" * 101, "a" * 300, "a" * 301, "é" * 200 + "/"]
    names = {file_name(text) for text in texts}
    assert len(names) == len(texts)
    assert all(len(name.encode()) <= LONGEST and "/" not in name for name in names)


def test_a_stage_with_a_shortened_file_name_is_known_by_its_own(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    journal = Journal(tmp_path)
    for name in (LONG * 3, "a@b"):
        journal.begin(Stage(name), tmp_path)
    assert sorted(journal.unfinished()) == sorted([LONG * 3, "a@b"])


ENDS = {
    "kill -9 $$": "its command was killed (SIGKILL; most often the memory ran out)",
    "kill -SEGV $$": "its command crashed (SIGSEGV; it accessed memory that is not its own)",
    'sh -c "kill -9 \\$\\$"; exit $?': "its command exited with 137, as a shell does when something in it was killed "
    "(SIGKILL; most often the memory ran out)",
    "exit 139": "its command exited with 139, as a shell does when something in it crashed (SIGSEGV; it accessed "
    "memory that is not its own)",
    "./data": "its command exited with 126 (a program in it can't be executed)",
    "nowhere": "its command exited with 127 (a program in it was not found)",
}


def test_how_a_command_ended_is_told(toy: Callable[..., Path], prefect_server: str) -> None:
    stages = "".join(f"  s{number}: {{cmd: '{command}'}}\n" for number, command in enumerate(ENDS))
    folder = toy(f"stages:\n{stages}", data="1\n")
    done = run("labdag", "run", "--keep-going", cwd=folder, check=False, PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    for number, told in enumerate(ENDS.values()):
        assert f"s{number} failed: {told}" in said


def test_how_a_command_ended_in_words() -> None:
    assert exit_of(3) == "exited with 3"
    assert exit_of(-9).startswith("was killed")
    assert exit_of(-1) == "was ended by SIGHUP"
    assert exit_of(-35) == "was ended by signal 35"
    assert exit_of(255) == "exited with 255"


def test_a_hundred_megabytes_in_one_line_pass(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy("stages:\n  a: {cmd: head -c 100000000 /dev/zero | tr '\\0' x, always_changed: true}\n")
    begun = time.monotonic()
    done = run("labdag", "run", cwd=folder, PREFECT_API_URL=prefect_server)
    assert time.monotonic() - begun < 60, "it was minutes"
    assert re.search(r" - x{4000}… \(100,000,\d{3} bytes\)\n", done.stderr)
    assert (folder / ".dvc/tmp/labdag/logs/a.log").stat().st_size > 100_000_000


def test_no_usage_statistics_and_no_word_of_them(toy: Callable[..., Path], tmp_path: Path) -> None:
    """A new user at a terminal, of whom neither Prefect nor DVC knows anything yet."""
    folder = toy("stages:\n  a: {cmd: 'env > a', outs: [{a: {cache: false}}]}\n")
    unset = {"CI", "GITHUB_ACTIONS", "DO_NOT_TRACK", "DVC_NO_ANALYTICS", "PREFECT_SERVER_ANALYTICS_ENABLED"}
    bare = {name: value for name, value in os.environ.items() if name not in unset}
    script = "labdag run; labdag diff --raw HEAD; labdag plan"
    done = subprocess.run(
        ["script", "-qec", script, str(tmp_path / "typescript")],
        cwd=folder,
        env=bare | {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / ".prefect"), "TERM": "xterm"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
    )
    said = (done.stdout + done.stderr).lower()
    assert "1 stage: 1 run" in said
    assert not re.search("telemetry|analytics|usage data", said)
    assert "DO_NOT_TRACK" not in (folder / "a").read_text(), "nor has a stage other variables than its user"


def test_a_repository_that_was_told_of_no_git_is_told_before_anything_runs(toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: cp params.yaml a, params: [x], outs: [a]}\n", **{"params.yaml": "x: 1\n"})
    run("dvc", "config", "core.no_scm", "true", cwd=folder)
    way = (
        "DVC was told that there is no git (`dvc init --no-scm`). If there is by now, `dvc config --unset "
        "core.no_scm`, then `git add .` and `git commit`.\n"
    )
    done = run("labdag", "sweep", "a", "-S", "x=1,2", cwd=folder, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: Experiments belong to commits: {way}")
    done = run("labdag", "diff", cwd=folder, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: There is no revision 'HEAD': {way}")
    run("dvc", "config", "--unset", "core.no_scm", cwd=folder)
    assert "Nothing was ever run" in run("labdag", "diff", cwd=folder).stdout


def test_a_folder_without_git_or_without_dvc_is_told_the_way(toy: Callable[..., Path]) -> None:
    folder = toy(ONE)
    run("git", "add", "--force", ".dvc/config", cwd=folder)
    run("git", "commit", "--quiet", "--message", "DVC", "--allow-empty", cwd=folder)
    (folder / "sub").mkdir()
    (folder / ".dvc").rename(folder.parent / "kept")
    for where in (folder, folder / "sub"):
        done = run("labdag", "plan", cwd=where, check=False)
        assert done.stderr == f"Error: {folder} has lost its .dvc; `git checkout .dvc`, there, brings it back.\n"
    (folder.parent / "kept").rename(folder / ".dvc")
    shutil.rmtree(folder / ".git")
    done = run("labdag", "plan", cwd=folder, check=False)
    assert done.stderr == (
        f"Error: DVC can't read the pipeline: {folder} is no git repository; `git init`, `git add .` and `git commit` "
        "make it one.\n"
    )


@pytest.mark.parametrize("file", ["params.yaml", "more.yaml", "p.toml"])
def test_a_date_among_the_params_is_told_with_its_file_and_key(file: str, toy: Callable[..., Path]) -> None:
    text = "[x]\nday = 2022-02-02\n" if file.endswith("toml") else "x:\n  day: 2022-02-02\n"
    folder = toy(f"stages:\n  a: {{cmd: echo > a, params: [{{{file}: [x]}}], outs: [a]}}\n", **{file: text})
    told = f"{file}: x.day is a date or a time, 2022-02-02, which DVC does not take; write it as text, in quotes."
    if file == "params.yaml":  # which DVC takes templates' values from, and so looks at itself
        told = (
            "DVC can't read the pipeline: Unsupported value of type 'date' in 'params.yaml:x.day'; write it as text, "
            "in quotes."
        )
    for command in ("plan", "run"):
        done = run("labdag", command, cwd=folder, check=False)
        assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")
    assert told in " ".join(run("labdag", "doctor", cwd=folder, check=False).stdout.split())


def test_values_of_a_sweep_stay_what_they_are(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy(
        "stages:\n  a: {cmd: cp params.yaml a.txt, params: [when, version, rate], outs: [a.txt]}\n",
        **{"params.yaml": "when: '2021-01-01'\nversion: '1.9'\nrate: 0.5\n"},
    )
    options = ("-S", "when=2022-02-02", "-S", "version=1.10", "-S", "rate=null")
    done = run("labdag", "sweep", "a", *options, cwd=folder, PREFECT_API_URL=prefect_server)
    assert re.search("2022-02-02 +1.10 +null +1", done.stdout), done.stdout
    run("dvc", "exp", "apply", "a-when2022-02-02-version1.10-ratenull", cwd=folder)
    assert YAML(typ="safe").load(folder / "params.yaml") == {"when": "2022-02-02", "version": "1.10", "rate": None}


def test_a_sweep_with_a_point_that_fails_ends_failed(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy("stages:\n  a: {cmd: 'test ${x} -lt 2 && echo > a', outs: [a]}\n", **{"params.yaml": "x: 1\n"})
    done = run("labdag", "sweep", "a", "-S", "x=1,2", cwd=folder, check=False, PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    assert "2 points: 1 recorded, 0 known, 1 failed" in done.stdout
    assert "Finished in state Failed('1 of 2 points failed; what the others made is recorded')" in done.stderr
    assert "Traceback" not in done.stderr


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        (LFS, "dvc.lock is a pointer of Git LFS, not the file; `git lfs pull` fetches it."),
        (
            "a:\n  cmd: echo 1 > a\n  outs:\n  - path: a\n    md5: b026324c6904b2a9cb4b88d6d61c81d1\n",
            "dvc.lock is of schema 1.0, which DVC 1 wrote and DVC 3 does not read. Have `dvc repro` of DVC 2 rewrite "
            "it, or delete it: then `labdag run` makes everything again.",
        ),
    ],
)
def test_a_lock_file_that_is_none_of_dvc_3_is_told(lock: str, told: str, toy: Callable[..., Path]) -> None:
    folder = toy(ONE)
    (folder / "dvc.lock").write_text(lock)
    for command in ("plan", "list", "run"):
        done = run("labdag", command, cwd=folder, check=False)
        assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")
    assert (folder / "dvc.lock").read_text() == lock


@pytest.mark.parametrize("name", ["dvc.yaml", "params.yaml"])
def test_a_pointer_of_git_lfs_is_told(name: str, toy: Callable[..., Path]) -> None:
    folder = toy("stages:\n  a: {cmd: 'echo ${x} > a', outs: [a]}\n")
    (folder / name).write_text(LFS)
    with pytest.raises(UserError, match=f"^{name} is a pointer of Git LFS, not the file; `git lfs pull` fetches it.$"):
        load(folder)


def test_no_progress_bars_in_what_is_printed(toy: Callable[..., Path]) -> None:
    """In a notebook, which is no terminal but shows them all the same."""
    folder = toy("stages:\n  a: {cmd: mkdir d && touch d/1 d/2, outs: [d]}\n")
    run("dvc", "repro", cwd=folder)
    for command in ("plan", "list", "diff"):
        done = run("labdag", command, cwd=folder, DVC_IGNORE_ISATTY="1")
        assert "Collecting" not in done.stderr
        assert "Building" not in done.stderr
        assert "%" not in done.stderr
