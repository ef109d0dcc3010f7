"""What it gains to run labs side by side, each with one thread, in one run on this machine.

    python -m benchmarks.side_by_side                                 # the four labs of mlp_cnn: ten minutes
    python -m benchmarks.side_by_side lenet_digits mlp_mnist --jobs 4

The labs run with their whole DAGs (build, train, evaluate, plot; the dataset is there before), one after the other with
as many threads as there are jobs and with one, and side by side with one each. A run is timed as a user has it, from
the shell, against a Prefect server that runs already. Figures are medians over rounds, in each of which everything runs
once, in turn. Let nothing else run meanwhile. The dataset is downloaded; LABDAG_MIRRORS is heeded. Where the time of a
lab goes, stage by stage, `python -m benchmarks.train_speed LAB --pipeline` tells.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.projects import copy_with_labs, run, server
from benchmarks.results import machine

LABS = ["mlp_mnist", "cnn_mnist", "mlp_mnist_permuted", "cnn_mnist_permuted"]


def main() -> None:
    """Print a row for each way, and what the best of them gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labs", nargs="*", metavar="LAB", default=LABS)
    parser.add_argument("--jobs", type=int, default=2, help="labs side by side (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default: 3)")
    options = parser.parse_args()
    ways = {
        f"one after the other, {options.jobs} threads": (1, options.jobs),
        "one after the other, 1 thread": (1, 1),
        f"{options.jobs} side by side, 1 thread each": (options.jobs, 1),
    }
    with tempfile.TemporaryDirectory() as name, server(Path(name) / "prefect") as api:
        os.environ["PREFECT_API_URL"] = api
        prepared = Path(name) / "prepared"
        datasets = copy_with_labs(prepared, options.labs)
        run(prepared, "labdag", "run", *datasets)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (jobs, threads) in ways.items():
                times[way].append(_timed(prepared, options.labs, jobs, threads))
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    *alone, beside = medians.values()
    print(f"{machine()}; {', '.join(options.labs)}; medians of {options.rounds}\n")
    print("| way | seconds |\n| :--- | ---: |")
    for way, seconds in medians.items():
        print(f"| {way} | {seconds:.1f} |")
    print(f"\nside by side beside the faster way of one after the other: {min(alone) / beside:.2f}×")


def _timed(prepared: Path, labs: list[str], jobs: int, threads: int) -> float:
    folder = prepared.with_name("run")
    shutil.copytree(prepared, folder, symlinks=True)
    params = YAML().load(folder / "params.yaml")
    for lab in labs:
        params["labs"][lab]["compute"]["threads"] = threads
    YAML().dump(params, folder / "params.yaml")
    clock = time.perf_counter()
    run(folder, "labdag", "run", *labs, "--jobs", str(jobs))
    seconds = time.perf_counter() - clock
    shutil.rmtree(folder)
    return seconds


if __name__ == "__main__":
    main()
