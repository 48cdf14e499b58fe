"""The MLflow pages of three small runs as people see them: a real server, a headless Chromium.

`PEFT_FLOW_SCREENSHOTS=folder` keeps what was seen.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

from tasks.base.records import RunResult
from tasks.servers.up import answers
from tasks.settings.loading import validated
from tasks.settings.rivals import TITLES
from tasks.tracking import runlist
from tests.conftest import free_port, without_pictures
from tests.test_finetune_flow import run_flow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]

SETTINGS = ((0, 0.01), (1, 0.02), (2, 0.0))
"""Seed and learning rate of each run; without a learning rate nothing is learned."""


class Site(NamedTuple):
    url: str
    results: list[RunResult]
    """Newest first, as the run list shows them."""

    def address(self, page: str) -> str:
        return f"{self.url}/{page}"

    def run(self, page: str = "") -> str:
        """A page of the second run, which has learned something."""
        address = runlist.run_address("1", self.results[1].run_id)
        return self.address(address.replace("?", f"{page}?"))


def run_with(foundation: Any, reviews: Path, seed: int, rate: float) -> RunResult:
    """Of the runs, only that which has learned something is looked at as closely as its pictures."""
    values = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 4, "batch_size": 8, "learning_rate": rate},
        "evaluation": {"bootstrap_samples": 200, "batch_size": 8},
        "seed": seed,
    }
    with nullcontext() if seed == 1 else without_pictures():
        return run_flow(validated(values))


@pytest.fixture(scope="module")
def site(
    foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None
) -> Iterator[Site]:
    """Three runs that differ in seed and learning rate, and an MLflow server over their store."""
    folder = tmp_path_factory.mktemp("site")
    with chdir(folder):
        results = [run_with(foundation, reviews, *settings) for settings in SETTINGS]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    command = ["server", "--backend-store-uri", store, "--artifacts-destination", f"{folder}/mlruns/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *command], cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert time.monotonic() < deadline and server.poll() is None, "the MLflow server did not start"
            time.sleep(0.2)
        yield Site(url, results[::-1])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Every address that the pages asked for."""
    return []


@contextmanager
def headless(asked: list[str]) -> Iterator[BrowserContext]:
    """A browser that adds every address its pages ask for to `asked`."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        context = chromium.new_context(viewport={"width": 1600, "height": 1000}, reduced_motion="reduce")
        # else an assistant covers the right third of MLflow's first page
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        context.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        context.on("request", lambda request: asked.append(request.url))
        yield context
        chromium.close()


@pytest.fixture(scope="module")
def browser(site: Site, asked: list[str]) -> Iterator[BrowserContext]:
    with headless(asked) as context:
        yield context


@pytest.fixture
def page(browser: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab of the browser."""
    tab = browser.new_page()
    yield tab
    keep_picture(tab, request.node.name.removeprefix("test_"))
    tab.close()


def keep_picture(tab: Page, name: str) -> None:
    """What the tab shows, where PEFT_FLOW_SCREENSHOTS names a folder for it."""
    if folder := os.environ.get("PEFT_FLOW_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png")


def row(page: Page, name: str) -> Locator:
    """The row of the run's metrics, the first table of its page, with this name."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first


def digits(value: float) -> str:
    """As JavaScript writes it: 1 and not 1.0."""
    return str(value).removesuffix(".0")


LINED_UP = """async name => {
    const [names, values] = document.querySelectorAll('[role=grid]')
    const scroll = async top => { values.scrollTop = top; await new Promise(done => setTimeout(done, 50)) }
    for (let top = 0; top < 6000; top += 100) {
        await scroll(top)
        const cells = [names, values].flatMap(grid => [...grid.querySelectorAll('[role=rowgroup] > div')])
        const found = cells.find(cell => cell.innerText === name)
        const line = cells.filter(cell => cell.style.top === found?.style.top)
        if (line.length > 1) {
            const texts = line.map(cell => cell.innerText)
            await scroll(1)  // the names follow one scroll behind
            await scroll(0)
            return texts
        }
    }
}"""
"""The compare page draws only the metrics in sight, as loose cells: scroll to the name and read along its line."""


def drawn(page: Page) -> None:
    """Wait until a picture is there and has really been drawn."""
    page.wait_for_function("[...document.images].some(image => image.complete && image.naturalWidth > 300)")


def test_run_page_begins_with_the_verdict(page: Page, site: Site) -> None:
    result = site.results[1]
    page.goto(site.run())
    row(page, "tuned/accuracy").wait_for()
    text = page.locator("body").inner_text()
    described = text[text.index("Description") :].split("\n", 1)[1].strip()
    assert described.lower().startswith(result.verdict.lower())
    assert text.index("Description") < text.index("Metrics (") < text.index("Parameters (")
    expect(row(page, "tuned/accuracy")).to_contain_text(digits(result.tuned["accuracy"]))
    expect(row(page, "delta/accuracy")).to_contain_text(digits(result.delta["accuracy"]))
    order = [text.index(f"\n{name}\n") for name in ("tuned/accuracy", "delta/accuracy", "baseline/accuracy")]
    assert order == sorted(order)


@pytest.mark.endurance
def test_ladder_is_a_table_with_names_that_people_know(page: Page, site: Site) -> None:
    page.goto(site.run("/artifacts/comparison/ladder.json"))
    page.get_by_role("cell", name=TITLES["tfidf"]).wait_for()
    cells = page.get_by_role("cell").all_inner_texts()
    for name in ("tuned", "baseline", "tfidf", "probe", "majority"):
        assert TITLES[name] in cells


@pytest.mark.endurance
def test_picture_is_displayed(page: Page, site: Site) -> None:
    page.goto(site.run("/artifacts/plots/ladder.png"))
    drawn(page)


def test_run_list_has_the_columns_that_runs_are_compared_by(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 3600, "height": 700})  # columns out of sight are not drawn
    page.goto(site.address(runlist.address("1")))
    page.get_by_text("cost/train_seconds", exact=True).wait_for()
    headers = page.locator(".ag-header-cell").evaluate_all(
        "cells => cells.map(cell => [cell.getBoundingClientRect().x, cell.innerText.trim()])"
    )
    columns = [text for _, text in sorted(headers) if text]
    other_tasks = tuple(f"/{name}" for name in runlist.FIRST if name != "accuracy")  # no run here has these
    expected = [name for _, name in runlist.COLUMNS if not name.endswith(other_tasks)]
    assert columns == ["Run Name", "Created", *expected, "Duration"]
    body = page.locator("body").inner_text()
    for result in site.results:
        assert "\n" + digits(result.tuned["accuracy"]) + "\n" in body
        assert result.verdict in body
    expect(page.get_by_text("3 matching runs")).to_be_visible()


@pytest.mark.endurance
def test_run_list_draws_settings_against_accuracy(page: Page, site: Site) -> None:
    page.goto(site.address(f"{runlist.address('1')}&compareRunsMode=CHART"))
    page.get_by_text("Parallel Coordinates").wait_for()
    page.locator(".parcoords").wait_for()
    cards = page.locator("body").inner_text()
    for name in (
        "tuned/accuracy",
        "reference/strongest/gain",
        "delta/accuracy",
        "validation/accuracy",
        "tuned/log_loss",
    ):
        assert f"\n{name}\n" in cards
    assert cards.count("Parallel Coordinates") == 1 and "micro_f1" not in cards, "no empty chart of another task"


@pytest.mark.endurance
def test_run_list_lines_up_the_same_table_of_each_run(page: Page, site: Site) -> None:
    page.goto(site.address(f"{runlist.address('1')}&compareRunsMode=ARTIFACT"))
    page.get_by_text(TITLES["tfidf"]).wait_for()
    expect(page.get_by_text("comparison/ladder.json")).to_be_visible()


@pytest.mark.endurance
def test_plain_run_list_leads_to_the_view(page: Page, site: Site) -> None:
    page.goto(site.address(f"#/experiments/1/runs?{runlist.KIND}"))
    with page.expect_popup() as tab:
        page.get_by_role("link", name="Columns and charts to compare runs by").click()
    tab.value.get_by_text("tuned/accuracy", exact=True).wait_for()
    expect(tab.value.get_by_role("button", name=runlist.TITLE)).to_be_visible()
    tab.value.close()


def test_compare_page_lines_up_three_runs(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 1600, "height": 2400})
    runs = [result.run_id for result in site.results]
    page.goto(site.address(f"#/compare-runs?runs={json.dumps(runs)}&experiments=[%221%22]&{runlist.KIND}"))
    page.locator(".parcoords").wait_for()
    axes = page.locator(".parcoords .axis-title").all_text_contents()
    assert axes[:2] == ["seed", "training.learning_rate"]
    names = page.get_by_role("row").filter(has=page.get_by_text("Run Name:", exact=True))
    assert len(re.findall("lora r8", names.inner_text())) == 3
    for name, values in (
        ("tuned/accuracy", [result.tuned["accuracy"] for result in site.results]),
        ("delta/accuracy", [result.delta["accuracy"] for result in site.results]),
    ):
        first, *cells = page.evaluate(LINED_UP, name)
        assert first == name
        assert [float(cell) for cell in cells] == pytest.approx(values, abs=0.001)
    page.get_by_text("comparison.md", exact=True).dispatch_event("click")
    tables = page.get_by_role("table").filter(has_text=TITLES["tfidf"])
    expect(tables).to_have_count(3)


def test_pages_asked_nobody_else(page: Page, site: Site, asked: list[str]) -> None:
    page.goto(site.run())
    row(page, "tuned/accuracy").wait_for()
    assert len(asked) > 10
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        urlsplit(site.url).netloc
    }
