"""What `dvc repro` does, labdag does: small pipelines, each with something that DVC users have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from labdag.files import remove
from labdag.pipeline.graph import Stage, load, problems
from labdag.pipeline.targets import rooted, select
from tests.conftest import run

NOTEBOOK = (
    "stages:\n  nb: {cmd: 'echo run >> ran; date +%N >> nb.ipynb; cp nb.ipynb out', deps: [nb.ipynb], outs: [out]}\n"
)


def labdag(*command: str, cwd: Path, server: str, check: bool = True, **env: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    done = run("labdag", *command, cwd=cwd, check=check, PREFECT_API_URL=server, **env)
    return done.returncode, done.stdout + done.stderr


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_bytecode_that_a_command_leaves_in_what_it_reads_is_no_edit(
    toy: Callable[..., Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    folder = toy("stages:\n  t: {cmd: echo run >> ran; python src/train.py > model, deps: [src], outs: [model]}\n")
    (folder / "src").mkdir()
    (folder / "src/train.py").write_text("import net\nprint(net.LAYERS)\n")
    for number, layers in ((1, "2"), (2, "30")):
        (folder / "src/net.py").write_text(f"LAYERS = {layers}\n")
        _, said = labdag("run", cwd=folder, server=prefect_server)
        assert "1 stage: 1 run, 0 reused" in said
        assert "Warning" not in said
        assert lines_of(folder / "ran") == number
        assert (folder / "src/__pycache__").is_dir()
        assert (folder / "model").read_text() == f"{layers}\n"
    assert "up to date" in run("dvc", "repro", cwd=folder).stdout, "recorded with what DVC sees"
    assert "1 stage: 0 run, 1 reused" in labdag("run", cwd=folder, server=prefect_server)[1]


def test_what_a_command_writes_of_what_it_reads_is_recorded_with_a_warning_and_remembered(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy(NOTEBOOK, **{"nb.ipynb": "cells\n"})
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert said.count("Warning: its command writes nb.ipynb, which it reads.") == 1
    assert "`meta: {writes_inputs: [nb.ipynb]}`" in said
    assert lines_of(folder / "ran") == 2, "the first time it could have been an edit from outside"
    assert "up to date" in run("dvc", "repro", cwd=folder).stdout
    with (folder / "nb.ipynb").open("a") as notebook:
        notebook.write("another cell\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert lines_of(folder / "ran") == 3, "and from then on it is known"
    assert said.count("Warning: its command writes nb.ipynb") == 1


def test_a_command_that_writes_what_is_there_already_is_known_for_it_and_not_forgotten(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    command = "echo run >> ran; sort -u -o names names; cp names out"
    folder = toy(f"stages:\n  t: {{cmd: '{command}', deps: [names], outs: [out]}}\n", names="b\na\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert said.count("Warning: its command writes names, which it reads.") == 1
    assert lines_of(folder / "ran") == 2
    for text, runs in (("b\na\n0\n", 3), ("1\n2\n", 4), ("2\n1\n0\n", 5)):
        (folder / "names").write_text(text)
        labdag("run", cwd=folder, server=prefect_server)
        assert lines_of(folder / "ran") == runs
        assert "up to date" in run("dvc", "repro", cwd=folder).stdout


@pytest.mark.parametrize(
    ("reads", "command", "key", "edited"),
    [
        ("deps: [src]", "cat src/a > out; date +%N > src/log; {} || echo 2 > src/a", "src/log", "src/a"),
        (
            "params: [n, lr]",
            'grep lr params.yaml > out; sed -i "s/n: .*/n: $(wc -l < ran)/" params.yaml;'
            ' {} || sed -i "s/lr: .*/lr: 2/" params.yaml',
            "params.yaml:n",
            "lr of params.yaml",
        ),
    ],
)
def test_an_edit_from_outside_beside_what_the_command_is_known_to_write_is_run_again(
    reads: str, command: str, key: str, edited: str, toy: Callable[..., Path], prefect_server: str
) -> None:
    """The third time, the command itself does what somebody else could do meanwhile."""
    text = json.dumps(f"echo run >> ran; {command.format('test $(wc -l < ran) != 3')}")
    folder = toy(f"stages:\n  t: {{cmd: {text}, {reads}, outs: [out]}}\n", **{"params.yaml": "n: 0\nlr: 0\n"})
    (folder / "src").mkdir()
    (folder / "src/a").write_text("0\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert f"Warning: its command writes {key}, which it reads." in said
    assert lines_of(folder / "ran") == 2
    (folder / "src/a").write_text("1\n")
    (folder / "params.yaml").write_text("n: 0\nlr: 1\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert f"edited while it ran: {edited}." in said
    assert lines_of(folder / "ran") == 4
    assert (folder / "out").read_text().strip().endswith("2")
    assert edited not in json.loads((folder / ".dvc/tmp/labdag/stages/t.writes").read_text())["names"]


def test_edits_of_other_files_in_both_tries_are_not_the_commands_own(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    command = "echo run >> ran; cat src/* > out; cp ran src/$(wc -l < ran)"
    folder = toy(f"stages:\n  t: {{cmd: '{command}', deps: [src], outs: [out]}}\n")
    (folder / "src").mkdir()
    (folder / "src/a").write_text("1\n")
    code, said = labdag("run", cwd=folder, server=prefect_server, check=False)
    assert code == 1
    assert "edited while it ran: src/2; the first time it was edited while it ran: src/1." in said
    assert "Warning" not in said


def test_what_a_command_is_declared_to_write_it_is_not_run_twice_for(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy(f"{NOTEBOOK.rstrip()[:-1]}, meta: {{writes_inputs: [nb.ipynb]}}}}\n", **{"nb.ipynb": "cells\n"})
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert lines_of(folder / "ran") == 1
    assert "Warning" not in said


def test_an_edit_from_outside_is_run_again_though_the_command_writes_into_the_same_folder(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    command = (
        "echo run >> ran; cat src/a > out; date +%N > src/log; test -e edited || { echo 2 > src/a; touch edited; }"
    )
    folder = toy(f"stages:\n  t: {{cmd: '{command}', deps: [src], outs: [out], meta: {{writes_inputs: [src/log]}}}}\n")
    (folder / "src").mkdir()
    (folder / "src/a").write_text("1\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert "edited while it ran: src/a" in said
    assert lines_of(folder / "ran") == 2
    assert (folder / "out").read_text() == "2\n"


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_a_new_lock_file_is_the_one_of_dvc_however_stages_end(
    jobs: str, toy: Callable[..., Path], prefect_server: str
) -> None:
    """The first ones end last."""
    stages = "".join(
        f"  {name}: {{cmd: 'sleep 0.{late}; touch {name}.txt', outs: [{name}.txt], deps: [{', '.join(deps)}]}}\n"
        for name, late, deps in (
            ("z", 4, ["in.csv"]),
            ("m", 2, ["in.csv"]),
            ("a", 0, ["in.csv"]),
            ("k", 3, ["a.txt", "z.txt"]),
            ("b", 0, ["m.txt"]),
        )
    )
    folder = toy(f"stages:\n{stages}", **{"in.csv": "1\n"})
    labdag("run", "--jobs", jobs, cwd=folder, server=prefect_server)
    ours = (folder / "dvc.lock").read_bytes()
    (folder / "dvc.lock").unlink()
    run("dvc", "repro", cwd=folder)
    assert ours == (folder / "dvc.lock").read_bytes()


TARGETS = "stages:\n  train: {cmd: echo top > model, outs: [model]}\n  only: {cmd: echo only > only, outs: [only]}\n"
BELOW = "stages:\n  train: {cmd: echo below > model, outs: [model]}\n"


@pytest.mark.parametrize(
    ("where", "target", "meant"),
    [
        (".", "train", ["train"]),
        (".", ":train", ["train"]),
        (".", "dvc.yaml:train", ["train"]),
        (".", "dvc.yaml", ["train", "only"]),
        (".", "./dvc.yaml", ["train", "only"]),
        (".", "sub/dvc.yaml", ["sub/dvc.yaml:train"]),
        (".", "sub/dvc.yaml:train", ["sub/dvc.yaml:train"]),
        ("sub", "train", ["sub/dvc.yaml:train"]),
        ("sub", ":train", ["sub/dvc.yaml:train"]),
        ("sub", "dvc.yaml", ["sub/dvc.yaml:train"]),
        ("sub", "../dvc.yaml", ["train", "only"]),
        ("sub", "../dvc.yaml:train", ["train"]),
        ("a@b", "train", ["a@b/dvc.yaml:train"]),
        (".", "a@b/dvc.yaml:train", ["a@b/dvc.yaml:train"]),
    ],
)
def test_targets_are_those_of_dvc(where: str, target: str, meant: list[str]) -> None:
    paths = {"train": "", "only": "", "sub/dvc.yaml:train": "sub", "a@b/dvc.yaml:train": "a@b"}
    stages = {name: Stage(name, file=f"{folder}/dvc.yaml".lstrip("/")) for name, folder in paths.items()}
    found = rooted(stages, [target], "" if where == "." else where)
    assert list(select(stages, found, single=True)) == meant


def test_a_target_is_one_of_the_folder_in_which_the_user_stands(toy: Callable[..., Path]) -> None:
    folder = toy(TARGETS)
    for name in ("sub", "a@b"):
        (folder / name).mkdir()
        (folder / name / "dvc.yaml").write_text(BELOW)
    for where, target, meant in (
        ("sub", "train", "sub"),
        ("sub", "../dvc.yaml:train", ""),
        (".", "a@b/dvc.yaml", "a@b"),
    ):
        said = run("labdag", "plan", target, cwd=folder / where).stdout
        names = [line.split()[0] for line in said.splitlines() if "never run" in line]
        assert names == [f"{meant}/dvc.yaml:train" if meant else "train"]


def test_a_name_of_another_folder_is_no_target_here(toy: Callable[..., Path]) -> None:
    folder = toy(TARGETS)
    (folder / "sub").mkdir()
    (folder / "sub/dvc.yaml").write_text(BELOW)
    done = run("labdag", "run", "only", cwd=folder / "sub", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: Nothing is called 'only'. Did you mean the one in ../dvc.yaml, '../dvc.yaml:only'? "
        "`labdag list` and `dvc stage list` show what there is.\n"
    )


def test_a_stage_in_a_folder_whose_name_holds_an_at_sign_runs_and_gets_its_outputs_back(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy("stages:\n  top: {cmd: cp a@b/model top, deps: [a@b/model], outs: [top]}\n")
    (folder / "a@b").mkdir()
    definition = folder / "a@b/dvc.yaml"
    definition.write_text("stages:\n  t:\n    foreach: [x]\n    do: {cmd: 'echo 1 > model', outs: [model]}\n")
    assert "2 stages: 2 run, 0 reused" in labdag("run", cwd=folder, server=prefect_server)[1]
    definition.write_text(definition.read_text().replace("echo 1", "echo 2; false"))
    code, said = labdag("run", "t", cwd=folder / "a@b", server=prefect_server, check=False)
    assert code == 1
    assert "a@b/dvc.yaml:t@x failed: its command exited with 1" in said
    assert (folder / "a@b/model").read_text() == "1\n"


FIGURES = 'it should be figures with the format of each, as Python has them, such as `meta.summary: {accuracy: ".2%"}`.'
SLOTS = "it should be a whole number for each resource, such as `meta.slots: {cpu: 2, gpu: 1}`."


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        ("hello", ""),
        ("[1]", ""),
        ("", ""),
        ("{owner: [me], 7: x}", ""),
        ("{summary: trains the model}", f"meta.summary is 'trains the model', which is ignored; {FIGURES}"),
        ("{summary: }", f"meta.summary is None, which is ignored; {FIGURES}"),
        ("{summary: {acc: 2}}", f"meta.summary is {{'acc': 2}}, which is ignored; {FIGURES}"),
        ("{summary: {acc: x%}}", f"meta.summary is {{'acc': 'x%'}}, which is ignored; {FIGURES}"),
        ("{summary: {acc: '>99999999'}}", f"meta.summary is {{'acc': '>99999999'}}, which is ignored; {FIGURES}"),
        ("{summary: {1: d}}", f"meta.summary is {{1: 'd'}}, which is ignored; {FIGURES}"),
        ("{slots: 2}", f"meta.slots is 2, which is ignored; {SLOTS}"),
        ("{slots: {gpu: -1}}", f"meta.slots is {{'gpu': -1}}, which is ignored; {SLOTS}"),
        (
            "{timeout: 1h}",
            "meta.timeout is '1h', which is ignored; it should be seconds, such as `meta.timeout: 3600`.",
        ),
        (
            "{timeout: .inf}",
            "meta.timeout is inf, which is ignored; it should be seconds, such as `meta.timeout: 3600`.",
        ),
        (
            "{retry_delay: -1}",
            "meta.retry_delay is -1, which is ignored; it should be seconds, such as `meta.retry_delay: 10`.",
        ),
        (
            "{retries: 1.5}",
            "meta.retries is 1.5, which is ignored; it should be a whole number, such as `meta.retries: 2`.",
        ),
        (
            "{report: [a.html]}",
            "meta.report is ['a.html'], which is ignored; it should be the path of a page, such as "
            "`meta.report: results/report.html`.",
        ),
        ("{timeot: 60}", "meta.timeot is no key that labdag reads; did you mean meta.timeout?"),
    ],
)
def test_what_labdag_cannot_use_of_meta_is_told_and_ignored(meta: str, problem: str, toy: Callable[..., Path]) -> None:
    folder = toy(f"stages:\n  a:\n    foreach: [x, y]\n    do: {{cmd: 'touch ${{item}}', meta: {meta}}}\n")
    found = problems(load(folder).values())
    assert found == ([f"dvc.yaml: stages.a.{problem}"] if problem else []), "once for both"


def test_a_mistake_in_meta_stops_nothing_and_every_command_that_reads_it_tells_it(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy("stages:\n  a: {cmd: touch x, outs: [x], meta: {timeout: 1h, slots: 2, reports: x}}\n")
    _, said = labdag("run", cwd=folder, server=prefect_server)
    assert "1 stage: 1 run, 0 reused" in said
    assert said.count("dvc.yaml: stages.a.meta.timeout is '1h', which is ignored") == 1
    assert said.count("dvc.yaml: stages.a.meta.reports is no key that labdag reads; did you mean meta.report?") == 1
    told = run("labdag", "plan", cwd=folder).stderr
    assert "Warning: dvc.yaml: stages.a.meta.slots is 2, which is ignored" in told
    assert "meta.slots is 2, which is ignored" in " ".join(run("labdag", "doctor", cwd=folder).stdout.split())


NESTED = """
stages:
  make: {cmd: mkdir -p d/sub && cp in.txt d/x && cp in.txt d/sub/y, deps: [in.txt], outs: [d]}
  file: {cmd: cp d/x file, deps: [d/x], outs: [file]}
  folder: {cmd: cp d/sub/y folder, deps: [d/sub], outs: [folder]}
  part: {cmd: cp in.txt all/p && chmod +x all/p, deps: [in.txt], outs: [all/p]}
  above: {cmd: cat all/* > above, deps: [all], outs: [above]}
"""


def test_what_is_in_or_above_an_output_that_is_restored_is_restored_too(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy(NESTED)
    (folder / "all").mkdir()
    (folder / "all/fixed").write_text("fixed\n")
    for text in ("1\n", "2\n"):
        (folder / "in.txt").write_text(text)
        labdag("run", cwd=folder, server=prefect_server)
    (folder / "in.txt").write_text("1\n")
    said = run("labdag", "plan", cwd=folder).stdout
    assert "5 stages: 0 unchanged, 5 will be restored, 0 will run, 0 may run" in said
    assert "5 stages: 0 run, 5 reused" in labdag("run", cwd=folder, server=prefect_server)[1]
    assert (folder / "above").read_text() == "fixed\n1\n"


def test_the_ignore_file_beside_an_output_that_is_restored_is_foreseen(
    toy: Callable[..., Path], prefect_server: str
) -> None:
    folder = toy(
        "stages:\n"
        "  e: {cmd: 'mkdir -p p/q && echo 1 > p/q/e && echo 2 > p/q/[f]', deps: [i], outs: [p/q/e, 'p/q/[f]']}\n"
        "  h: {cmd: find p -type f > h, deps: [p], outs: [h]}\n",
        i="1\n",
    )
    labdag("run", cwd=folder, server=prefect_server)
    for lost, foreseen in (
        (["p"], "1 unchanged, 1 will be restored, 0 will run, 0 may run"),
        (["p", "h"], "0 unchanged, 2 will be restored, 0 will run, 0 may run"),
    ):
        for name in lost:
            remove(folder / name)
        said = run("labdag", "plan", cwd=folder).stdout
        assert f"2 stages: {foreseen}" in said
        assert "2 stages: 0 run, 2 reused" in labdag("run", cwd=folder, server=prefect_server)[1]


def test_a_frozen_stage_without_an_output_will_fail(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy("stages:\n  a: {cmd: echo 1 > a, outs: [a], frozen: true}\n  b: {cmd: cp a b, deps: [a], outs: [b]}\n")
    said = run("labdag", "plan", cwd=folder).stdout
    assert [line.split()[:3] for line in said.splitlines() if line.split()[:1] in (["a"], ["b"])] == [
        ["a", "will", "fail"],
        ["b", "will", "be"],
    ]
    assert "a is missing" in said
    code, said = labdag("run", cwd=folder, server=prefect_server, check=False)
    assert code == 1
    assert "a is missing" in said


DATASETS = """
datasets: [{name: mine, type: dvc, url: %s, path: d.csv}]
stages:
  a: {cmd: cp %s/d.csv a, deps: ['ds://mine'], outs: [a]}
  b: {cmd: cp a b, deps: [a, 'ds://mine'], outs: [b]}
"""


def test_datasets_are_dependencies_as_dvc_has_them(
    toy: Callable[..., Path], empty_repository: Path, prefect_server: str, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(empty_repository, tmp_path / "source", symlinks=True))

    def publish(text: str) -> None:
        (source / "d.csv").write_text(text)
        run("dvc", "add", "--quiet", "d.csv", cwd=source)
        run("git", "add", "--all", cwd=source)
        run("git", "commit", "--quiet", "--message", text.strip(), cwd=source)

    publish("1\n")
    folder = toy(DATASETS % (source, source))
    told = "ds://mine is not in dvc.lock as it is declared; `dvc ds update mine` records it"
    assert told in run("labdag", "plan", cwd=folder).stdout
    code, said = labdag("run", cwd=folder, server=prefect_server, check=False)
    assert code == 1
    assert f"Error: a failed: {told}\n" in said
    run("dvc", "ds", "update", "mine", cwd=folder)
    assert "2 stages: 2 run, 0 reused" in labdag("run", cwd=folder, server=prefect_server)[1]
    assert "2 unchanged" in run("labdag", "plan", cwd=folder).stdout
    assert "fresh" in run("labdag", "list", cwd=folder).stdout
    ours = (folder / "dvc.lock").read_text()
    assert "up to date" in run("dvc", "repro", cwd=folder).stdout
    (folder / "dvc.lock").unlink()
    run("dvc", "ds", "update", "mine", cwd=folder)
    run("dvc", "repro", cwd=folder)
    assert ours == (folder / "dvc.lock").read_text()

    publish("2\n")
    run("dvc", "ds", "update", "mine", cwd=folder)
    assert "ds://mine changed" in run("labdag", "plan", cwd=folder).stdout
    assert "2 stages: 2 run, 0 reused" in labdag("run", cwd=folder, server=prefect_server)[1]
    (folder / "dvc.yaml").write_text(
        DATASETS.partition("\n")[2].replace("mine, type", "yours, type") % (source, source)
    )
    assert "ds://mine is not declared under `datasets:`" in run("labdag", "plan", cwd=folder).stdout


CHAIN = """
stages:
  a: {cmd: cat in.txt > a; echo a >> ran, deps: [in.txt], outs: [a]}
  b: {cmd: wc -l < a > b; echo b >> ran, deps: [a], outs: [b]}
  c: {cmd: cp b c; echo c >> ran, deps: [b], outs: [c]}
"""


def both_run(made: Callable[[], Path], server: str, *options: str) -> tuple[str, str]:
    """What `dvc repro` runs, with some options, and what labdag does."""
    found = []
    for command in (("dvc", "repro"), ("labdag", "run")):
        folder = made()
        run(*command, *options, cwd=folder, PREFECT_API_URL=server)
        found.append((folder / "ran").read_text() if (folder / "ran").exists() else "")
        shutil.rmtree(folder)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("options", "edit", "ran"),
    [
        (("--single-item", "b"), "in.txt", ""),
        (("--force-downstream",), "in.txt", "a\nb\nc\n"),
        (("--allow-missing",), "lost", ""),
        (("--no-run-cache",), "back", "a\nb\n"),
    ],
)
def test_options_are_those_of_dvc_repro(
    options: tuple[str, ...], edit: str, ran: str, toy: Callable[..., Path], prefect_server: str
) -> None:
    def made() -> Path:
        folder = toy(CHAIN, **{"in.txt": "1\n"})
        run("dvc", "repro", "--quiet", cwd=folder)
        if edit == "back":
            (folder / "in.txt").write_text("2\n")
            run("dvc", "repro", "--quiet", cwd=folder)
        (folder / "in.txt").write_text({"in.txt": "2\n"}.get(edit, "1\n"))
        if edit == "lost":
            shutil.rmtree(folder / ".dvc/cache")
            (folder / "a").unlink()
            (folder / "c").unlink()
        (folder / "ran").unlink()
        return folder

    assert both_run(made, prefect_server, *options) == (ran, ran)


def test_plan_knows_the_options_of_run(toy: Callable[..., Path], prefect_server: str, tmp_path: Path) -> None:
    folder = toy(CHAIN, **{"in.txt": "1\n"})
    labdag("run", cwd=folder, server=prefect_server)

    def planned(*options: str) -> str:
        return run("labdag", "plan", *options, cwd=folder).stdout.splitlines()[-1]

    (folder / "in.txt").write_text("2\n")
    assert "0 unchanged, 0 will be restored, 1 will run, 2 may run" in planned()
    assert "0 unchanged, 0 will be restored, 3 will run, 0 may run" in planned("--force-downstream")
    assert planned("--single-item", "b").startswith("1 stage: 1 unchanged")
    labdag("run", cwd=folder, server=prefect_server)
    (folder / "in.txt").write_text("1\n")
    assert "1 unchanged, 2 will be restored, 0 will run" in planned()
    assert "0 unchanged, 0 will be restored, 1 will run, 2 may run" in planned("--no-run-cache")
    labdag("run", cwd=folder, server=prefect_server)
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), cwd=folder)
    run("dvc", "push", cwd=folder)
    shutil.rmtree(folder / ".dvc/cache")
    for name in "abc":
        (folder / name).unlink()
    assert "3 unchanged" in planned("--allow-missing")
    assert "3 will be restored" in planned("--pull")
    assert "3 stages: 0 run, 3 reused" in labdag("run", "--pull", cwd=folder, server=prefect_server)[1]


def test_no_commit_leaves_the_cache_alone_and_quiet_says_nothing(toy: Callable[..., Path], prefect_server: str) -> None:
    folder = toy(CHAIN, **{"in.txt": "1\n"})
    done = run("labdag", "run", "--no-commit", "--quiet", cwd=folder, PREFECT_API_URL=prefect_server)
    assert (done.stdout, done.stderr) == ("", "")
    assert not list((folder / ".dvc/cache").rglob("files/md5/*/*"))
    assert (folder / "dvc.lock").exists()
    (folder / "dvc.yaml").write_text(CHAIN.replace("cat in.txt", "false; cat in.txt", 1).replace("; echo a", " && no"))
    done = run("labdag", "run", "-q", cwd=folder, check=False, PREFECT_API_URL=prefect_server)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error: a failed" in done.stderr
    assert "DEBUG" in labdag("run", "-v", "--single-item", "b", cwd=folder, server=prefect_server, check=False)[1]
