"""The rules of the rooms: who imports what, and that dvc.yaml declares just that."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from labdag.execution.outcome import StageState
from stages import params
from tests.conftest import ROOT, edit_params, run


def declared() -> dict[str, tuple[set[str], str]]:
    """Stage → the files of stages/ that dvc.yaml declares as its deps, and its command."""
    return {
        stage.addressing: (
            {dep.def_path for dep in stage.deps if str(dep.def_path).startswith("stages/")},
            str(stage.cmd),
        )
        for stage in Repo(str(ROOT)).index.stages
    }


def path_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


@cache
def imports(path: Path) -> list[str]:
    """First-party modules that a file can import, wherever in it: each name, as a module or one inside a module."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def templates(path: Path) -> set[Path]:
    """Templates that a module reads, and those that they take parts from; all lie beside it."""
    found: set[Path] = set()
    pending = re.findall(r'^TEMPLATE = "(.*)"$', path.read_text(), re.MULTILINE)
    while pending:
        template = path.parent / pending.pop()
        if template not in found:
            found.add(template)
            pending += re.findall(r'\{%-? *(?:extends|include|import|from) +"(.*?)"', template.read_text())
    return found


def closure(module: str, chosen: dict[str, str]) -> set[str]:
    """Files that importing `module` can load; of a registry folder, the module that params.yaml chooses."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        path = path_of(name)
        if not name.startswith("stages") or path is None or path.relative_to(ROOT).as_posix() in found:
            continue
        found.add(path.relative_to(ROOT).as_posix())
        found |= {template.relative_to(ROOT).as_posix() for template in templates(path)}
        pending += [*imports(path), name.rpartition(".")[0]]
        if name in chosen and name != module:
            pending.append(f"{name}.{chosen[name]}")
    return found


def chosen(stage: str, loaded: params.Params) -> dict[str, str]:
    key = stage.partition("@")[2]
    if key in loaded.labs:
        return {"stages.models": loaded.labs[key].model.name}
    if key in loaded.compare:
        return {}
    return {"stages.datasets.sources": loaded.datasets[key].kind}


def test_each_stage_declares_exactly_the_modules_that_it_can_import() -> None:
    stages, loaded = declared(), params.load(ROOT / "params.yaml")
    assert len(stages) > 10
    for stage, (files, _) in stages.items():
        assert files == closure(f"stages.{stage.partition('@')[0]}", chosen(stage, loaded)), stage


LOADED = """
import json, runpy, sys
sys.argv = [sys.argv[1], sys.argv[2]]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as exit_:
    assert not exit_.code, exit_.code
# No stage compiles, and to import the compiler takes nearly as long as torch itself.
assert not {"torch._dynamo", "triton"} & set(sys.modules)
files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("stages")]
print("\\n" + json.dumps([file for file in files if file]))
"""


@pytest.mark.parametrize("stage", ["download", "stats", "build", "train", "evaluate", "plot", "compare"])
def test_a_stage_that_runs_loads_no_module_that_it_does_not_declare(stage: str, finished_copy: Path) -> None:
    """The same rule, held against what Python really loads."""
    key = {"download": "digits", "stats": "digits", "compare": "shuffle"}.get(stage, "lenet_digits")
    if stage == "compare":
        shutil.copytree(finished_copy / "results/lenet_digits", finished_copy / "results/lenet_mnist")
        edit_params(finished_copy, compare={key: {"labs": ["lenet_digits", "lenet_mnist"]}})
    done = run("python", "-c", LOADED, f"stages.{stage}", key, cwd=finished_copy)
    loaded = {Path(file).relative_to(finished_copy).as_posix() for file in json.loads(done.stdout.splitlines()[-1])}
    files, command = declared()[f"{stage}@{key}"]
    assert command.startswith(f"python -m stages.{stage} {key}")
    assert loaded | {f"stages/{stage}.py"} <= files


BLOCK = """
import sys
blocked = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Block())
import importlib, pkgutil
package = importlib.import_module(sys.argv[2])  # or a module
for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(module.name)
"""


def imported(package: str, blocked: str) -> subprocess.CompletedProcess[Any]:
    return run("python", "-c", BLOCK, blocked, package, cwd=ROOT, check=False)


def test_stages_import_without_prefect_and_dvc() -> None:
    assert imported("stages", "prefect,dvc,labdag").stderr == ""


def test_labdag_imports_without_torch() -> None:
    assert imported("labdag", "torch,torchvision,PIL,matplotlib,sklearn,stages").stderr == ""


def test_the_block_does_block() -> None:
    assert "torch is not installed" in imported("stages", "torch").stderr
    assert "prefect is not installed" in imported("labdag.flows", "prefect").stderr


def test_what_handles_no_tensors_imports_no_torch() -> None:
    for stage in ("download", "stats", "compare"):
        assert imported(f"stages.{stage}", "torch,torchvision").stderr == ""


def test_params_yaml_is_checked_without_torch() -> None:
    code = "from stages import params; params.load(); import sys; assert 'torch' not in sys.modules"
    run("python", "-c", code, cwd=ROOT)


def test_the_shipped_labs_name_their_best_models_as_artifacts() -> None:
    repo = Repo(str(ROOT))
    (artifacts,) = repo.artifacts.read().values()
    labs = {stage.partition("@")[2] for stage in declared() if stage.startswith("train@")}
    assert {"lenet_digits", "lenet_mnist"} <= artifacts.keys() <= labs
    for lab, artifact in artifacts.items():
        assert artifact.path == f"results/{lab}/best.safetensors"


def test_readme_lists_every_state_of_a_stage() -> None:
    text = (ROOT / "README.md").read_text()
    (listed,) = re.findall(r"state that says what happened, and why: (.*?)\. A run in which", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(StageState)
    assert not any(state.is_failure and state.is_reused for state in StageState)
