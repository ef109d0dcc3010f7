"""`labdag sweep`: many combinations of params, each in a copy, recorded as DVC experiments."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image
from ruamel.yaml import YAML

from labdag.errors import UserError
from labdag.sweeping.chart import draw
from labdag.sweeping.points import Point, corners, grid, settings, write
from labdag.sweeping.search import Study
from labdag.sweeping.swept import Found, Result, Sweep
from tests.conftest import STRESS, is_gone, run, wait_for

PIPELINE = """
stages:
  prepare: {cmd: python log.py prepare, deps: [log.py, raw.csv], outs: [prepared]}
  init: {cmd: python log.py init, deps: [log.py, prepared], params: [seed], outs: [weights]}
  train:
    cmd: python log.py train
    deps: [log.py, weights]
    params: [seed, train.lr]
    metrics: [metrics.json]
    meta: {summary: {accuracy: ".1%"}, seed: seed}
"""
PARAMS = "# kept\nseed: 0\ntrain: {lr: 1.0, about: 'a \"b\"'}\n"
# Writes down in a file outside which stage ran, and with which params.
LOG = """
import json, os, sys, time, yaml
stage, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
seed, lr = params["seed"], params["train"]["lr"]
with open(os.environ["RUNS"], "a") as file:
    print(stage, *{"prepare": [], "init": [seed], "train": [lr, seed]}[stage], file=file)
time.sleep(float(os.environ.get("TAKES", 0.2)))
if stage == "train" and lr == 13:
    sys.exit("lr 13 is bad luck")
if stage == "train":
    json.dump({"accuracy": 0.5 + lr / 10 + seed / 100}, open("metrics.json", "w"))
else:
    open({"prepare": "prepared", "init": "weights"}[stage], "w").write(f"{stage} {seed if stage == 'init' else ''}")
"""
KEYS = {"seed": 1, "labs": {"a": {"lr": 0.1, "seed": 0, "train": {"lr": 1}}}}


@pytest.fixture
def repository(toy: Callable[..., Path], prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return toy(PIPELINE, **{"params.yaml": PARAMS, "log.py": LOG, "raw.csv": "1"})


def runs(folder: Path) -> Counter[str]:
    """How often which stage ran with which params."""
    path = folder.parent / "runs"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def experiments(folder: Path) -> list[str]:
    return sorted(run("dvc", "exp", "list", "--all", "--name-only", cwd=folder).stdout.split())


def test_points_are_all_combinations_by_readable_names() -> None:
    chosen = settings(["train.lr=0.1,1e-3", "labs.a.seed=1..2"], KEYS, "a")
    assert [(setting.name, setting.short) for setting in chosen] == [
        ("labs.a.train.lr", "lr"),
        ("labs.a.seed", "seed"),
    ]
    points = grid("a", chosen)
    assert [point.name for point in points] == ["a-lr0.1-seed1", "a-lr0.1-seed2", "a-lr0.001-seed1", "a-lr0.001-seed2"]
    assert points[2].values == {"labs.a.train.lr": 0.001, "labs.a.seed": 1}
    long = grid("a" * 150, settings(["seed=1,2"], KEYS, "a"))
    assert len({point.name for point in long}) == 2
    assert all(len(point.name) < 150 for point in long)
    both = settings(["lr=1,2", "train.lr=[a, b],c d"], KEYS, "a")
    assert [setting.short for setting in both] == ["a.lr", "train.lr"]
    assert grid("a", both)[0].name == "a-a_lr1-train_lr_a_b_"


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "Nothing is varied"),
        (["lr"], "should be a param and its values"),
        (["lr="], "should be a param and its values"),
        (["epochs=1"], "params.yaml has no param 'epochs'. a has lr, seed, train.lr"),
        (["trian.lr=1"], "params.yaml has no param 'trian.lr'. Did you mean 'train.lr'?"),
        (["train=1"], None),
        (["lr=1", "labs.a.lr=2"], "sets labs.a.lr again"),
        (["seed=3..1"], "3 is more than 1"),
        (["lr=0.1..0.5"], "labs.a.lr is to take all values from 0.1 to 0.5: list those to try, or say with --trials"),
        (["lr=0..1:log"], "begins at 0, and logarithms at more than 0"),
        (["lr=[1,2"], "no YAML"),
        (["seed=1..3,7"], "has the range 1..3 among other values"),
        (["lr=1,1"], "a value stands there twice"),
        (["lr=!!int a"], "no YAML"),
        (["lr=] #"], "has no values"),
        (["lr=1..1e999"], "an end that is no finite number"),
        (["seed=1..10000000"], "The grid has 10,000,000 points, more than 100,000"),
    ],
)
def test_what_can_not_be_varied_gets_a_sentence(texts: list[str], sentence: str | None) -> None:
    if sentence is None:
        assert grid("a", settings(texts, KEYS, "a"))
        return
    with pytest.raises(UserError, match=re.escape(sentence)):
        grid("a", settings(texts, KEYS, "a"))


def test_a_search_has_no_two_values_of_one_name() -> None:
    for texts in (["lr=a b,a_b"], ["lr=1,1"]):
        with pytest.raises(UserError, match=r"Two values of labs\.a\.lr would both be called lr"):
            corners("a", settings(texts, KEYS, "a"))
    spaced, plain = (settings([text], KEYS, "a") for text in ("lr= 1e-3 .. 0.1 :log", "lr=1e-3..0.1:log"))
    assert spaced == plain
    assert [point.values["labs.a.lr"] for point in corners("a", spaced)] == [1e-3, 0.1]


def test_a_number_is_written_as_every_reader_of_yaml_knows_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# rate\nlr: 1.0e-3  # kept\nall: [1, 2.50]\nbig: 1\n")
    write(tmp_path, Point("a", {"lr": 1e-5, "big": 1e16, "all": [2e-7, 0.5]}))
    text = (tmp_path / "params.yaml").read_text()
    assert yaml.safe_load(text) == {"lr": 1e-5, "big": 1e16, "all": [2e-7, 0.5]}
    assert YAML(typ="safe", pure=True).load(text) == yaml.safe_load(text)
    assert "# rate" in text
    assert "# kept" in text


def test_columns_of_one_name_are_told_apart() -> None:
    chosen = settings(["lr=1", "runs=2"], {"lr": 0, "runs": 0}, "a")
    (point,) = grid("a", chosen)
    results = [Result(point, Found.RECORDED, point.name, metrics={"lr": 0.1, "x.json:acc": 0.5, "y.json:acc": 0.25})]
    assert Sweep(chosen, results, {"lr": ".1f", "acc": ".0%"}).rows() == [
        {"lr": "1", "runs (param)": "2", "runs": "1", "lr (metric)": "0.1", "x.json:acc": "50%", "y.json:acc": "25%"}
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_figure_that_is_no_number_has_no_deviation(bad: float, tmp_path: Path) -> None:
    chosen = settings(["seed=1..3", "lr=1,2"], KEYS, "a")
    figures = [
        bad if point.name == "a-seed2-lr1" else 0.5 + number / 10 for number, point in enumerate(grid("a", chosen))
    ]
    results = [
        Result(point, Found.RECORDED, point.name, metrics={"acc": figure})
        for point, figure in zip(grid("a", chosen), figures, strict=True)
    ]
    sweep = Sweep(chosen, results, {"acc": ".1%"}, seed=chosen[0].name, metric="acc")
    rows = {row["lr"]: row["acc"] for row in sweep.rows()}
    assert rows == {"1": f"{bad:.1%}", "2": "80.0% ± 20.0"}
    assert draw(sweep, tmp_path / "chart.png") == tmp_path / "chart.png"


def test_a_sweep_leaves_experiments_and_runs_what_they_share_once(repository: Path) -> None:
    (repository / "params.yaml").write_text(PARAMS.replace("lr: 1.0", "lr: 5"))  # not committed
    before = run("git", "status", "--porcelain", cwd=repository).stdout
    done = run("labdag", "sweep", "train", "-S", "train.lr=1,2", "-S", "seed=1..3", "--jobs", "2", cwd=repository)

    assert runs(repository) == Counter(
        ["prepare", "init 1", "init 2", "init 3"] + [f"train {lr} {seed}" for lr in (1, 2) for seed in (1, 2, 3)]
    )
    names = [f"train-lr{lr}-seed{seed}" for lr in (1, 2) for seed in (1, 2, 3)]
    assert experiments(repository) == names
    assert run("git", "status", "--porcelain", cwd=repository).stdout == before
    assert not (repository / "metrics.json").exists()
    assert re.search(r"1 +3 +62.0% ± 1.0\b", done.stdout)
    assert re.search(r"2 +3 +72.0% ± 1.0\b", done.stdout)
    assert "6 points: 6 recorded, 0 known, 0 failed" in done.stdout
    assert not list((repository / ".dvc/tmp/labdag/sweeps").iterdir())
    with Image.open(repository / ".dvc/tmp/labdag/charts/train.png") as chart:
        assert chart.format == "PNG"
    assert "A chart of it: " in done.stderr

    shown: list[dict[str, Any]] = json.loads(run("dvc", "exp", "show", "--json", cwd=repository).stdout)
    assert sorted(each["name"] for each in shown[1]["experiments"]) == names
    again = run("labdag", "sweep", "train", "-S", "train.lr=1,2", "-S", "seed=1..3", cwd=repository)
    assert "6 points: 0 recorded, 6 known, 0 failed" in again.stdout
    assert re.search(r"2 +3 +72.0% ± 1.0\b", again.stdout)
    assert sum(runs(repository).values()) == 10

    run("git", "checkout", "params.yaml", cwd=repository)
    run("dvc", "exp", "apply", "train-lr2-seed3", cwd=repository)
    assert (repository / "params.yaml").read_text() == PARAMS.replace("seed: 0", "seed: 3").replace("lr: 1.0", "lr: 2")
    assert json.loads((repository / "metrics.json").read_text())["accuracy"] == pytest.approx(0.73)
    assert "nothing to commit" not in run("git", "status", cwd=repository).stdout
    assert (
        "within the noise of the seed, up to 2.8 points (± 1.0 points over 3 runs)"
        in run("labdag", "diff", "train-lr2-seed1", "train-lr2-seed2", cwd=repository).stdout
    )


def test_points_at_a_temporary_server_name_no_page_of_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    done = run("labdag", "sweep", "train", "-S", "train.lr=1", cwd=repository)
    assert "1 point: 1 recorded" in done.stdout
    assert "Starting a temporary server" in done.stderr
    assert "View at" not in done.stdout + done.stderr, "it has no UI"


def test_a_search_tries_so_many_points_and_goes_on_with_more(repository: Path) -> None:
    command = ["labdag", "sweep", "train", "-S", "train.lr=0.1..4", "-S", "seed=1..2", "--metric", "accuracy"]
    done = run(*command, "--trials", "2", "--jobs", "2", cwd=repository)
    assert "2 points: 2 recorded, 0 known, 0 failed" in done.stdout
    first = experiments(repository)
    assert all(re.fullmatch(r"train-lr\d(\.\d+)?-seed[12]", name) for name in first), first

    done = run(*command, "--trials", "4", cwd=repository)
    assert "4 points: 2 recorded, 2 known, 0 failed" in done.stdout
    assert set(first) < set(experiments(repository))
    figures = [float(found) for found in re.findall(r" (\d+\.\d)%", done.stdout)]
    assert figures == sorted(figures, reverse=True)
    assert len(figures) == 4

    run("dvc", "repro", "--quiet", cwd=repository)
    run("git", "add", "dvc.lock", cwd=repository)
    run("git", "commit", "--quiet", "--message", "Run", cwd=repository)
    done = run(*command[:-1], "acuracy", "--trials", "1", cwd=repository, check=False)
    assert done.returncode == 1
    assert "As it was committed, train has no metric 'acuracy'; it has accuracy." in done.stderr
    assert "Error: train has no metric 'acuracy'; it has accuracy." in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_edited_meanwhile_stays_out_of_the_points(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKES", "0.5")
    started = subprocess.Popen(["labdag", "sweep", "train", "-S", "seed=1..2"], cwd=repository)
    wait_for(lambda: runs(repository)["init 1"], 60)
    (repository / "log.py").write_text("raise SystemExit('edited')")
    (repository / "params.yaml").write_text(PARAMS.replace("lr: 1.0", "lr: 7"))
    assert started.wait(120) == 0
    assert runs(repository)["train 1.0 2"] == 1

    monkeypatch.setenv("TAKES", "0")
    (repository / "log.py").write_text(LOG + "# edited\n")
    done = run("labdag", "sweep", "train", "-S", "seed=1", cwd=repository)  # is another one
    assert "1 point: 1 recorded" in done.stdout
    assert experiments(repository) == ["train-seed1", "train-seed1-2", "train-seed2"]


def test_a_point_that_fails_leaves_the_others_alone(repository: Path) -> None:
    done = run("labdag", "sweep", "train", "-S", "train.lr=13,2", cwd=repository, check=False)
    assert done.returncode == 1
    assert "2 points: 1 recorded, 0 known, 1 failed" in done.stdout
    assert "train-lr13: train failed: its command exited with 1, last saying: lr 13 is bad luck" in done.stderr
    assert "NoneType: None" not in done.stderr
    assert experiments(repository) == ["train-lr2"]
    sweeps = repository / ".dvc/tmp/labdag/sweeps"
    (left,) = sweeps.iterdir()
    assert (left / "base").is_dir()
    assert list(left.glob("train-lr13-*.ready")), "to go on with"
    (repository / "raw.csv").write_text("2")
    run("labdag", "sweep", "train", "-S", "train.lr=2", cwd=repository)
    assert not list(sweeps.iterdir())


def test_a_sweep_that_is_killed_goes_on_where_it_was(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKES", "0.3")
    lrs, seeds, kills = (3, 4, (3, 7)) if STRESS else (2, 2, (1, 2))
    command = ["labdag", "sweep", "train", "-S", f"train.lr=1..{lrs}", "-S", f"seed=1..{seeds}", "--jobs", "2"]
    points = [(lr, seed) for lr in range(1, lrs + 1) for seed in range(1, seeds + 1)]
    recorded: set[str] = set()
    known: Counter[str] = Counter()
    for count in kills:
        started = subprocess.Popen(command, cwd=repository, start_new_session=True)
        wait_for(lambda count=count: len(experiments(repository)) >= count, 200)  # type: ignore[misc]
        started.send_signal(signal.SIGKILL)
        started.wait()
        wait_for(lambda: not left_of(repository), 30)
        recorded = {name.replace("train-lr", "train ").replace("-seed", " ") for name in experiments(repository)}
        known = Counter({name: times for name, times in runs(repository).items() if name in recorded})
    done = run(*command, cwd=repository)

    told = f"{len(points) - len(recorded)} recorded, {len(recorded)} known, 0 failed"
    assert f"{len(points)} points: {told}" in done.stdout
    assert experiments(repository) == [f"train-lr{lr}-seed{seed}" for lr, seed in points]
    ended = runs(repository)
    assert ended["prepare"] == 1
    assert all(ended[f"init {seed}"] <= 1 + len(kills) for _, seed in points)  # where it was killed itself
    for name in recorded:
        assert ended[name] == known[name], "it ran again though it was recorded"
    assert run("git", "status", "--porcelain", cwd=repository).stdout == ""


def left_of(repository: Path) -> list[int]:
    """Processes at work in the copies of a sweep."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if str(repository) in process.cwd() and not is_gone(process.pid):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_one_sweep_of_the_same_inputs_is_at_work_at_a_time(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKES", "4")
    first = subprocess.Popen(
        ["labdag", "sweep", "train", "-S", "seed=1"], cwd=repository, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: runs(repository)["prepare"], 60)
    second = run("labdag", "sweep", "train", "-S", "seed=1..2", cwd=repository, check=False)
    assert "Another `labdag sweep` with the same inputs is at work" in second.stderr
    first.send_signal(signal.SIGINT)
    assert "started again, the sweep goes on from there" in first.communicate(timeout=60)[1]
    assert first.returncode == 130
    wait_for(lambda: not left_of(repository), 30)


def test_two_sweeps_at_once_give_their_experiments_two_names(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKES", "4")
    first = subprocess.Popen(["labdag", "sweep", "train", "-S", "seed=1"], cwd=repository)
    wait_for(lambda: runs(repository)["prepare"], 60)
    (repository / "log.py").write_text(LOG + "# edited\n")
    run("labdag", "sweep", "train", "-S", "seed=1", cwd=repository)
    assert first.wait(120) == 0
    assert experiments(repository) == ["train-seed1", "train-seed1-2"]
    again = run("labdag", "sweep", "train", "-S", "seed=1", cwd=repository)
    assert "1 point: 0 recorded, 1 known" in again.stdout


def test_a_submodule_that_experiments_would_lose_is_told(repository: Path) -> None:
    run("git", "-c", "protocol.file.allow=always", "submodule", "add", "--quiet", "./", "lib", cwd=repository)
    run("git", "commit", "--quiet", "--all", "--message", "Add a submodule", cwd=repository)
    done = run("labdag", "sweep", "train", "-S", "seed=1", cwd=repository, check=False)
    assert done.returncode == 1
    assert "Error: lib is a git submodule, which a sweep's experiments would lose" in done.stderr
    assert not runs(repository)
    assert not experiments(repository)


def test_a_search_picks_listed_values_as_they_are_listed(tmp_path: Path) -> None:
    listed = (0.123456, 0.123449)
    chosen = settings([f"lr={listed[0]},{listed[1]}"], KEYS, "a")
    study = Study(tmp_path / "studies.db", "s", "a", chosen, 6, "acc", maximize=True, log=print)
    picked = [point.values["labs.a.lr"] for point in iter(study.ask, None)]
    assert len(picked) == 6
    assert set(picked) <= set(listed)


def test_other_values_of_a_like_name_are_another_point(repository: Path) -> None:
    for lr, ending in (("0.12345671", "1 recorded, 0 known"), ("0.12345674", "1 recorded, 0 known")):
        done = run("labdag", "sweep", "train", "-S", f"train.lr={lr}", cwd=repository)
        assert ending in done.stdout
    assert experiments(repository) == ["train-lr0.123457", "train-lr0.123457-2"]
    run("dvc", "gc", "--workspace", "--force", cwd=repository)
    again = run("labdag", "sweep", "train", "-S", "train.lr=0.12345674", cwd=repository)
    assert "1 point: 1 recorded, 0 known" in again.stdout, "its results were lost"
    assert experiments(repository) == ["train-lr0.123457", "train-lr0.123457-2"]


OTHERS = """
stages:
  mine:
    wdir: sub
    cmd: python ../new.py
    deps: [../new.py, ../big.csv]
    params: [../params.yaml: [lr]]
    metrics: [../m.json: {cache: false}]
  theirs:
    cmd: cp raw.json t.json
    deps: [raw.json]
    metrics: [t.json: {cache: false}]
"""
NEW = """
import json, yaml
json.dump({"loss": yaml.safe_load(open("../params.yaml"))["lr"]}, open("../m.json", "w"))
"""


def test_what_belongs_to_others_stays_as_it_is(
    toy: Callable[..., Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics of other stages that git tracks, data that DVC tracks, in a repository below git's root."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    folder = toy("{}") / "below"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/kept").touch()
    run("dvc", "init", "--quiet", "--subdir", cwd=folder)
    for name, text in {"params.yaml": "lr: 1.0", "raw.json": "{}", "big.csv": "data", "dvc.yaml": OTHERS}.items():
        (folder / name).write_text(text)
    run("dvc", "add", "--quiet", "big.csv", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("dvc", "repro", "--quiet", "theirs", cwd=folder)
    run("git", "add", "t.json", cwd=folder)  # and not dvc.lock
    run("git", "commit", "--quiet", "--message", "Run", cwd=folder)
    (folder / "new.py").write_text(NEW)  # nor this

    done = run("labdag", "sweep", "mine", "-S", "lr=2,3", cwd=folder)
    assert "2 points: 2 recorded, 0 known, 0 failed" in done.stdout
    assert re.search(r"\n *2 +1 +2 *\n *3 +1 +3 *\n", done.stdout), "of a file above the stage's folder"
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps", cwd=folder).stdout.split()
    (ref,) = (ref for ref in refs if ref.endswith("/mine-lr2"))
    changed = run("git", "diff", "--name-status", "HEAD", ref, cwd=folder).stdout.splitlines()
    assert {tuple(line.split("\t")) for line in changed} >= {("A", "below/dvc.lock"), ("A", "below/new.py")}
    assert not [line for line in changed if line.startswith("D")]

    (folder / "new.py").write_text(f"{NEW}\nopen('../big.csv', 'a').write('junk')")
    run("labdag", "sweep", "mine", "-S", "lr=4", cwd=folder, check=False)
    (folder / "big.csv").unlink()
    run("dvc", "checkout", "--quiet", "big.csv.dvc", cwd=folder)
    assert (folder / "big.csv").read_text() == "data"


def test_mistakes_get_a_sentence(repository: Path) -> None:
    def refusal(*arguments: str, folder: Path = repository) -> str:
        done = run("labdag", "sweep", *arguments, cwd=folder, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "Nothing is called 'trian'" in refusal("trian", "-S", "seed=1")
    assert "has no param 'sed'" in refusal("train", "-S", "sed=1")
    assert "Nothing of train reads train.about, so its value makes no difference" in refusal("train", "-S", "about=a,b")
    assert "Nothing is varied: name params and their values, such as -S seed=1..5." in refusal("train")
    run("git", "update-ref", "-d", "HEAD", cwd=repository)
    assert "has no commit" in refusal("train", "-S", "seed=1")


def test_values_that_a_lab_does_not_have_are_told_before_any_point_is_begun(project: Path) -> None:
    done = run("labdag", "sweep", "lenet_digits", "-S", "train.epochs=2,none", cwd=project, check=False)
    assert done.returncode == 1
    assert "lenet_digits-epochsnone: params.yaml: labs.lenet_digits.train.epochs" in done.stderr
