"""What people see of runs in Prefect's UI, in a real browser; set LABDAG_SHOTS to keep pictures of it in a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from labdag.orchestration import services
from tests.conftest import free_port, give_database, run, wait_for
from tests.test_services import Up, need

SHOTS = os.environ.get("LABDAG_SHOTS")
LOADED = 60_000  # milliseconds that a page may take to show something


@pytest.fixture(scope="module")
def site(finished: Path, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The services of a project in which lenet_digits has been run, and whose last run was one of these."""
    need("chromium")
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("site") / "labs", symlinks=True))
    give_database(prefect_home, folder)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 20", "epochs: 6", 1))
    home = str(tmp_path_factory.mktemp("prefect-of-site"))
    run("labdag", "up", "--port", str(free_port()), cwd=folder, PREFECT_HOME=home)
    try:
        run("labdag", "run", "lenet_digits", cwd=folder, PREFECT_HOME=home)
        run("labdag", "run", "lenet_digits", cwd=folder, PREFECT_HOME=home)
        yield Up(folder)
    finally:
        run("labdag", "down", cwd=folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options: dict[str, Any] = {"executable_path": need("chromium"), "args": ["--no-sandbox"]}
        with playwright.chromium.launch(**options) as browser:
            yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, site: Up) -> Page:
    """A page of the UI, signed in."""
    # As high as what is looked at: the UI renders only what can be seen.
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    page.goto(site.services.url)
    shoot(page, "ui-sign-in")
    sign_in(page, site)
    return page


def sign_in(page: Page, site: Up) -> None:
    """Type what the command prints that `labdag up` names."""
    field = page.locator("input[type=password]")
    field.wait_for(timeout=LOADED)
    field.fill(run("cat", services.password_file(site.folder), cwd=site.folder).stdout.strip())
    field.press("Enter")
    field.wait_for(state="detached", timeout=LOADED)


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(2000)  # until what moves has come to rest
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def see(page: Page, text: str) -> None:
    expect(page.get_by_text(text, exact=False).first).to_be_visible(timeout=LOADED)


def test_a_run_shows_stages_states_logs_and_artifacts(site: Up, page: Page) -> None:
    first, second = site.runs("reproduce")
    page.goto(f"{site.services.url}/runs/flow-run/{first['id']}")
    see(page, "reproduce lenet_digits")
    see(page, "Running stage 'train@lenet_digits'")
    shoot(page, "ui-run")
    page.get_by_text("Task Runs", exact=True).first.click()
    for stage in ("download@digits", "stats@digits", "build@lenet_digits", "train@lenet_digits", "plot@lenet_digits"):
        see(page, stage)
    page.get_by_text("Artifacts", exact=True).first.click()
    for key in ("progress-train-lenet-digits", "plots-plot-lenet-digits", "summary", "metrics-diff"):
        see(page, key)
    shoot(page, "ui-artifacts")
    see(page, "epoch 6/6: train loss")

    page.goto(f"{site.services.url}/runs/flow-run/{second['id']}")
    see(page, "UpToDate")
    page.get_by_text("Task Runs", exact=True).first.click()
    see(page, "train@lenet_digits")
    expect(page.get_by_text("Unchanged", exact=True)).to_have_count(6, timeout=LOADED)
    shoot(page, "ui-unchanged")


def test_artifacts_show_pictures_progress_and_figures(site: Up, page: Page) -> None:
    first = site.runs("reproduce")[0]
    found = {each["key"]: each["id"] for each in site.post(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [first["id"]]}})}  # fmt: skip
    page.goto(f"{site.services.url}/artifacts/artifact/{found['plots-plot-lenet-digits']}")
    picture = page.get_by_role("img", name=re.compile("curves.png"))
    expect(picture).to_be_visible(timeout=LOADED)
    assert picture.evaluate("image => image.naturalWidth") > 100
    shoot(page, "ui-pictures")
    page.goto(f"{site.services.url}/artifacts/artifact/{found['progress-train-lenet-digits']}")
    see(page, "epoch 6/6: train loss")
    see(page, "100%")
    page.goto(f"{site.services.url}/artifacts/artifact/{found['metrics-diff']}")
    see(page, "accuracy")


def test_a_lab_is_started_from_the_form_of_its_deployment(site: Up, page: Page) -> None:
    page.goto(f"{site.services.url}/deployments")
    see(page, "lenet_digits")
    see(page, "At 03:00 AM")  # when it is retrained
    shoot(page, "ui-deployments")
    page.get_by_text("lab", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run", exact=False).first.click()
    see(page, "Stages, groups, keys or globs to bring up to date")
    shoot(page, "ui-form")
    name = page.locator("input").first
    name.fill("from the form")
    page.get_by_role("button", name="Submit").click()

    def ended() -> bool:
        return any(each["state"]["type"] in ("COMPLETED", "FAILED") and each["deployment_id"]
                   for each in site.runs("reproduce"))  # fmt: skip

    wait_for(ended, 200)


def test_names_that_are_shell_commands_are_refused_before_anything_runs(site: Up, tmp_path: Path) -> None:
    """DVC puts the names of a params.yaml into its commands, and a params.yaml may be a stranger's."""
    path = site.folder / "params.yaml"
    known = path.read_text()
    name = f"x; touch {tmp_path}/was-run;"
    try:
        path.write_text(known.replace("\nlabs:\n", f'\nlabs:\n  "{name}": {{}}\n', 1))
        told = run("labdag", "run", cwd=site.folder, check=False)
        assert told.returncode == 1
        assert f"params.yaml: labs.{name}" in told.stderr
        started = site.start("reproduce/lab")
        wait_for(lambda: site.has_ended(started), 60)
        assert site.state(started)["message"].startswith(f"Refused: params.yaml: labs.{name}")
    finally:
        path.write_text(known)
    assert not list(tmp_path.iterdir())
