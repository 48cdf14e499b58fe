"""What people do in a browser with `peft-flow up`: fill in the form, watch, compare, cancel, switch on a schedule.

The real servers and worker, a headless Chromium. `PEFT_FLOW_SCREENSHOTS=folder` keeps what was seen.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tasks.base.closing import flow_runs
from tasks.settings.config import RunConfig
from tasks.settings.form import FIRST, unfolded
from tasks.settings.loading import choices, sections
from tasks.settings.rivals import TITLES
from tasks.settings.sections import EvaluationConfig
from tasks.tracking import runlist
from tests.stacks import Stack, until
from tests.test_browser import CHROMIUM, LINED_UP, digits, headless, keep_picture, row

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]

PROPERTY = ".schema-form-property"
TITLE = f":scope > .p-label__header {PROPERTY}__label"
NO_MODEL = "no-such/model"


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Every address that the pages asked for."""
    return []


@pytest.fixture(scope="module")
def browser(asked: list[str]) -> Iterator[BrowserContext]:
    with headless(asked) as context:
        yield context


@pytest.fixture
def page(browser: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab of the browser."""
    tab = browser.new_page()
    yield tab
    keep_picture(tab, f"up_{request.node.name.removeprefix('test_')}")
    tab.close()


@pytest.fixture(scope="module")
def small(foundation: Any, reviews: Path) -> dict[str, Any]:
    """Parameters of a run that takes seconds."""
    return {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 12, "batch_size": 8, "learning_rate": 0.02},
        "evaluation": {"bootstrap_samples": 200},
    }


@pytest.fixture(scope="module")
def dora(stack: Stack, browser: BrowserContext, small: dict[str, Any]) -> str:
    """Id of a flow run that was started with the form."""
    tab = browser.new_page()
    open_form(tab, stack)
    for dotted, text in (
        ("model.name", small["model"]["name"]),
        ("data.name", small["data"]["name"]),
        ("data.max_length", 32),
        ("adapter.r", 4),
        ("training.epochs", 3),
        ("training.batch_size", 8),
    ):
        write(tab, dotted, text)
    write(tab, "data.max_train_rows", 40)
    choose(tab, "adapter.method", "dora")
    keep_picture(tab, "up_form_filled_in")
    tab.get_by_role("button", name="Submit").click()
    tab.get_by_role("button", name="View run").last.click()  # the first is there for screen readers
    tab.wait_for_url("**/runs/flow-run/*")
    flow_run = urlsplit(tab.url).path.rsplit("/", 1)[1]
    tab.close()
    return flow_run


@pytest.fixture(scope="module")
def done(stack: Stack, dora: str) -> str:
    """The same, when it has completed."""
    stack.until_state(dora, "COMPLETED", seconds=300)
    return dora


@pytest.fixture(scope="module")
def no_model(stack: Stack, small: dict[str, Any]) -> str:
    """Id of a flow run whose model is nowhere."""
    flow_run = stack.submit({**small, "model": {"name": NO_MODEL}, "offline": True})
    stack.until_state(flow_run, "FAILED", seconds=120)
    return flow_run


def open_deployment(page: Page, stack: Stack, name: str) -> None:
    page.goto(f"{stack.prefect}/deployments/deployment/{stack.deployment(name)['id']}")
    page.get_by_role("button", name="Run", exact=True).wait_for()


def open_form(page: Page, stack: Stack, advanced: bool = True) -> None:
    open_deployment(page, stack, "finetune")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    field(page, "tracking.run_name").wait_for()
    if advanced:
        field(page, "advanced").get_by_text("set more", exact=True).click()
        field(page, "offline").wait_for()
        field(page, "adapter.options").locator(".p-code-input").wait_for()  # drawn once more, after all else


def open_run(page: Page, stack: Stack, flow_run: str, tab: str = "Logs") -> None:
    page.goto(f"{stack.prefect}/runs/flow-run/{flow_run}")
    page.get_by_text(tab, exact=True).first.click()


def field(page: Page, dotted: str) -> Locator:
    """The form's field, with its title, description and input; no other has its title."""
    named = page.locator(TITLE, has_text=re.compile(rf"^{re.escape(dotted)}( \(Optional\))?$"))
    return page.locator(PROPERTY).filter(has=named)


def titles(page: Page) -> list[str]:
    found = page.locator(f"{PROPERTY}__label").all_inner_texts()
    return [text.removesuffix(" (Optional)") for text in found]


def write_own(page: Page, small: dict[str, Any]) -> None:
    """Model and data, which begin empty."""
    for section in ("model", "data"):
        write(page, f"{section}.name", small[section]["name"])


def write(page: Page, dotted: str, text: object) -> None:
    field(page, dotted).locator("textarea, input").fill(str(text))


def options(page: Page, dotted: str) -> Locator:
    """The choices of a field, shown."""
    field(page, dotted).locator(".p-select-button__icon").click()  # a click beside the arrow opens and closes at once
    return page.get_by_role("option")


def choose(page: Page, dotted: str, choice: str) -> None:
    options(page, dotted).get_by_text(choice, exact=True).click()
    expect(field(page, dotted).locator(".p-select-button")).to_have_text(choice)


def run_name(parameters: dict[str, Any], method: str) -> str:
    """What a run of the small model on the small data is called."""
    return " · ".join([*(Path(parameters[part]["name"]).name for part in ("model", "data")), method])


def submitted(stack: Stack) -> int:
    return int(stack.call("POST", "/flow_runs/count", {}))


def mlflow_run(stack: Stack, flow_run: str) -> Any:
    run = stack.mlflow_run(flow_run)
    assert run, f"no MLflow run of flow run {flow_run}"
    return run


def artifact_keys(stack: Stack, flow_run: str) -> set[str]:
    found = stack.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
    return {artifact["key"] for artifact in found}


def log_rows(page: Page) -> list[str]:
    page.locator(".log-row").first.wait_for()
    return [text.strip() for text in page.locator(".log-row__content").all_inner_texts()]


def upcoming(stack: Stack, deployment: str) -> list[dict[str, Any]]:
    found = stack.call(
        "POST",
        "/flow_runs/filter",
        {
            "deployments": {"id": {"any_": [stack.deployment(deployment)["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        },
    )
    return list(found)


def test_run_of_the_form_completes_under_a_name_that_says_what_it_does(
    page: Page, stack: Stack, dora: str, small: dict[str, Any]
) -> None:
    open_run(page, stack, dora)
    expect(page.get_by_text("Running", exact=True).first).to_be_visible()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=300_000)
    expect(page.get_by_role("navigation").get_by_text(run_name(small, "dora r4"))).to_be_visible()


def test_run_of_the_form_was_told_what_was_typed(stack: Stack, done: str, small: dict[str, Any]) -> None:
    given = stack.call("GET", f"/flow_runs/{done}")["parameters"]
    assert set(given) == {*FIRST, "advanced"} - {"tracking"}  # where nobody typed a name
    assert {name: set(given[name]) for name in ("model", "training")} == {"model": {"name"}, "training": {"epochs"}}
    told = unfolded(given)
    assert told["model"]["name"] == small["model"]["name"]
    assert (told["data"]["name"], told["data"]["max_train_rows"]) == (small["data"]["name"], 40)
    assert (told["adapter"]["method"], told["adapter"]["r"], told["training"]["epochs"]) == ("dora", 4, 3)
    assert "learning_rate" not in told["training"]  # nobody typed one: it is the method's
    assert set(told) == set(RunConfig.model_fields)
    for name, section in sections():
        said = section.model_validate(told[name]).model_dump(mode="json")
        assert told[name] == {inner: value for inner, value in said.items() if value is not None}


def test_form_begins_with_the_eight_fields_that_people_set_and_nobodys_job(page: Page, stack: Stack) -> None:
    open_form(page, stack, advanced=False)
    eight = [(section, inner) for section, fields in FIRST.items() for inner in fields]
    expected: list[str] = []
    for section, inner in eight:
        expected += [section] * (section not in expected) + [f"{section}.{inner}"]
    assert titles(page) == [*expected, "advanced"]
    for name in ("model.name", "data.name"):
        expect(field(page, name).locator("textarea, input")).to_have_value("")
    ends = page.locator(PROPERTY).evaluate_all("all => all.map(one => one.getBoundingClientRect().bottom)")
    starts = page.locator(PROPERTY).evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert max(ends) - min(starts) < 2000, "all fields at once took 7,270 pixels"


def test_what_is_missing_is_said_at_its_field(page: Page, stack: Stack, small: dict[str, Any]) -> None:
    before = submitted(stack)
    open_form(page, stack, advanced=False)
    write(page, "model.name", small["model"]["name"])
    page.get_by_role("button", name="Submit").click()
    expect(field(page, "data.name")).to_contain_text("'name' is a required property")
    expect(field(page, "model.name")).not_to_contain_text("required")
    assert submitted(stack) == before


@pytest.mark.endurance
def test_form_shows_every_field_with_its_description_in_the_order_people_think(page: Page, stack: Stack) -> None:
    page.set_viewport_size({"width": 1600, "height": 8400})
    open_form(page, stack)
    first, rest = list[str](), list[str]()
    for name, section in sections():
        shown = FIRST.get(name, ())
        others = [inner for inner in section.model_fields if inner not in shown]
        first += [name, *(f"{name}.{inner}" for inner in shown)] if shown else []
        rest += [f"advanced.{name}", *(f"{name}.{inner}" for inner in others)]
        schema = section.model_json_schema()
        for inner in section.model_fields:
            description = schema["properties"][inner]["description"].replace("`", "")
            assert description and field(page, f"{name}.{inner}").locator(f"{PROPERTY}__description").inner_text() == (
                description
            )
    assert titles(page) == [*first, "advanced", *rest, "seed", "offline"]
    assert not page.get_by_text("Property is type").count()


@pytest.mark.endurance
def test_closed_choices_of_the_form_are_lists_to_choose_from(page: Page, stack: Stack) -> None:
    open_form(page, stack)
    closed = {f"{name}.{inner}": choices(part, inner) for name, part in sections() for inner in part.model_fields}
    closed = {dotted: allowed for dotted, allowed in closed.items() if allowed}
    assert {"adapter.method", "training.scheduler", "model.dtype", "training.selection_metric"} <= set(closed)
    for dotted, allowed in closed.items():
        expect(options(page, dotted)).to_have_text(list(allowed))
        page.get_by_role("option").first.click()


@pytest.mark.endurance
def test_references_of_the_form_are_chosen_from_a_list(page: Page, stack: Stack) -> None:
    open_form(page, stack)
    default = list(EvaluationConfig().references)
    expect(field(page, "evaluation.references").locator(".p-tag--dismissible")).to_have_text(default)
    expect(options(page, "evaluation.references")).to_have_text(default)


@pytest.mark.endurance
def test_form_asks_for_json_only_where_any_name_can_stand(page: Page, stack: Stack) -> None:
    open_form(page, stack)
    dotted = [f"{name}.{inner}" for name, section in sections() for inner in section.model_fields]
    editors = [name for name in dotted if field(page, name).locator(".p-code-input").count()]
    assert editors == ["adapter.options", "evaluation.zero_shot_words"]


@pytest.mark.parametrize(
    ("dotted", "value", "reason"),
    [
        pytest.param(
            "training.warmup_fraction", 50, "50 is greater than the maximum of 1", marks=pytest.mark.endurance
        ),
        ("training.learning_rate", 50, "50 is greater than the maximum of 10"),  # which may be left empty
        ("adapter.r", 0, "0 is less than"),  # under advanced
    ],
    ids=("warmup_fraction", "learning_rate", "r"),
)
def test_bad_value_is_refused_in_the_form(
    page: Page, stack: Stack, small: dict[str, Any], dotted: str, value: float, reason: str
) -> None:
    before = submitted(stack)
    open_form(page, stack)
    write_own(page, small)
    write(page, dotted, value)
    page.get_by_role("button", name="Submit").click()
    section, _, name = dotted.partition(".")
    where = dotted if name in FIRST.get(section, ()) else f"advanced.{dotted}"
    expect(page.get_by_text(f"'{where}'").first).to_contain_text(reason)
    expect(field(page, dotted).locator("input")).to_have_value(str(value))
    assert submitted(stack) == before


@pytest.mark.parametrize(
    ("parameters", "name"), [({"learning": 1}, "learning"), ({"training": {"learning_rat": 1}}, "learning_rat")]
)
def test_unknown_parameter_is_refused_by_name(
    stack: Stack, small: dict[str, Any], parameters: dict[str, Any], name: str
) -> None:
    path = f"/deployments/{stack.deployment('finetune')['id']}/create_flow_run"
    assert f"'{name}'" in stack.refusal("POST", path, {"parameters": small | parameters})


def test_log_of_a_run_is_its_story(page: Page, stack: Stack, done: str) -> None:
    open_run(page, stack, done)
    page.get_by_text("Recorded:").wait_for()
    rows = log_rows(page)
    assert len(rows) <= 25
    routine = ("Finished in state", "Beginning", "Deployment step", "Created task run", "Running hook")
    assert not [text for text in rows if text.startswith(routine)]
    story = "\n".join(rows)
    for words in ("40 train, 12 validation, 12 test rows", "Foundation model: accuracy", "Adapter, read back"):
        assert words in story


@pytest.mark.endurance
def test_run_page_shows_what_the_run_made(page: Page, stack: Stack, done: str) -> None:
    open_run(page, stack, done, "Artifacts")
    for key in ("data-check", "training-progress", "comparison", "mlflow-run"):
        expect(page.get_by_role("link").filter(has_text=key)).to_be_visible()


@pytest.mark.endurance
def test_comparison_shows_the_ladder(page: Page, stack: Stack, done: str) -> None:
    open_run(page, stack, done, "Artifacts")
    page.get_by_role("link").filter(has_text="comparison").click()
    page.get_by_role("cell", name=TITLES["tfidf"]).wait_for()
    cells = page.get_by_role("cell").all_inner_texts()
    for name in ("tuned", "baseline", "tfidf", "probe", "majority"):
        assert TITLES[name] in cells


def test_run_page_leads_to_mlflow(page: Page, stack: Stack, done: str) -> None:
    open_run(page, stack, done, "Artifacts")
    page.get_by_role("link").filter(has_text="mlflow-run").click()
    with page.expect_popup() as tab:
        page.get_by_role("link", name=re.compile("MLflow run")).click()
    run = mlflow_run(stack, done)
    accuracy = row(tab.value, "tuned/accuracy")
    expect(accuracy).to_contain_text(digits(run.data.metrics["tuned/accuracy"]))
    expect(tab.value).to_have_url(re.compile(re.escape(f"{stack.mlflow}/#/experiments/1/runs/{run.info.run_id}")))
    tab.value.close()


@pytest.mark.endurance
def test_mlflow_leads_back_to_the_run_page(page: Page, stack: Stack, done: str, small: dict[str, Any]) -> None:
    page.goto(f"{stack.mlflow}/{runlist.run_address('1', mlflow_run(stack, done).info.run_id)}")
    address = page.locator("[title*='/flow-run/']").get_attribute("title")
    assert address
    page.goto(address)
    expect(page.get_by_text(run_name(small, "dora r4")).first).to_be_visible()
    expect(page).to_have_url(re.compile(f"{re.escape(stack.prefect)}.*{done}"))


def hosts(*urls: str) -> set[str]:
    return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}


def errors(page: Page, stack: Stack, flow_run: str) -> list[str]:
    open_run(page, stack, flow_run)
    rows = page.locator(".log-row").filter(has=page.locator(".log-level-label--error"))
    rows.first.wait_for()
    return rows.locator(".log-row__content").all_inner_texts()


def test_run_without_a_model_says_in_one_line_what_to_do(page: Page, stack: Stack, no_model: str) -> None:
    first = errors(page, stack, no_model)[0].strip()
    assert "\n" not in first
    assert NO_MODEL in first and "run once without offline" in first


@pytest.mark.endurance
def test_trouble_is_reported_once(page: Page, stack: Stack, no_model: str) -> None:
    assert len(errors(page, stack, no_model)) == 1


@pytest.mark.endurance
def test_two_runs_are_lined_up_on_the_compare_page(page: Page, stack: Stack, done: str, small: dict[str, Any]) -> None:
    lora = stack.submit({**small, "seed": 1})
    stack.until_state(lora, "COMPLETED", seconds=120)
    found = [mlflow_run(stack, flow_run) for flow_run in (done, lora)]
    page.set_viewport_size({"width": 1600, "height": 2400})
    ids = json.dumps([run.info.run_id for run in found])
    page.goto(f"{stack.mlflow}/#/compare-runs?runs={ids}&experiments=[%221%22]&{runlist.KIND}")
    page.locator(".parcoords").wait_for()
    names = page.get_by_role("row").filter(has=page.get_by_text("Run Name:", exact=True))
    for method in ("dora r4", "lora r8 · lr 0.02 · seed 1"):
        expect(names).to_contain_text(run_name(small, method))
    first, *cells = page.evaluate(LINED_UP, "tuned/accuracy")
    assert first == "tuned/accuracy"
    assert [float(cell) for cell in cells] == pytest.approx(
        [run.data.metrics["tuned/accuracy"] for run in found], abs=0.001
    )


@pytest.mark.endurance
def test_cancelled_run_stops_at_once_and_keeps_what_it_trained(page: Page, stack: Stack, small: dict[str, Any]) -> None:
    flow_run = stack.submit({**small, "training": {"epochs": 5000, "batch_size": 8}})
    open_run(page, stack, flow_run)
    until(lambda: stack.tasks(flow_run).get("train adapter") == "RUNNING", 120, "training")
    until(lambda: "training-progress" in artifact_keys(stack, flow_run), 30, "progress")
    processes = flow_runs()[flow_run]
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Confirm").click()
    until(lambda: not any(process.is_running() for process in processes), 10, "end of the process")
    stack.until_state(flow_run, "CANCELLED", seconds=30)
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible()
    run = mlflow_run(stack, flow_run)
    assert run.info.status == "KILLED"
    page.goto(f"{stack.mlflow}/{runlist.run_address('1', run.info.run_id).replace('?', '/artifacts/checkpoint?')}")
    expect(page.get_by_text("adapter_model.safetensors").first).to_be_visible()


def test_schedule_is_off_and_lists_its_next_run_once_switched_on(page: Page, stack: Stack) -> None:
    deployment = "finetune-gpt2-rotten-tomatoes"
    open_deployment(page, stack, deployment)
    switch = page.get_by_role("switch").first
    expect(switch).to_have_attribute("aria-checked", "false")
    assert not upcoming(stack, deployment)
    switch.click()
    runs = until(lambda: upcoming(stack, deployment), 60, "next run")
    page.get_by_text("Upcoming", exact=True).click()
    expect(page.get_by_role("link", name=runs[0]["name"])).to_be_visible()
    switch.click()
    until(lambda: not upcoming(stack, deployment), 10, "no run any more")
    expect(switch).to_have_attribute("aria-checked", "false")


def test_files_of_runs_lie_where_the_stack_was_started(stack: Stack, done: str) -> None:
    assert list((stack.folder / "mlruns/work").glob("*/adapter/adapter_model.safetensors"))


@pytest.mark.endurance
def test_front_page_asks_nobody_else(browser: BrowserContext, stack: Stack) -> None:
    assert browser.browser
    asked: list[str] = []
    with browser.browser.new_context() as newcomer:  # has never chosen between Prefect's two UIs
        newcomer.on("request", lambda request: asked.append(request.url))
        tab = newcomer.new_page()
        tab.goto(stack.prefect)
        tab.get_by_text("Dashboard").first.wait_for()
        time.sleep(2)  # it would ask when all is drawn
        keep_picture(tab, "up_front_page")
    assert hosts(*asked) == hosts(stack.prefect)


def test_pages_asked_nobody_else(stack: Stack, done: str, asked: list[str]) -> None:
    assert len(asked) > 100
    assert hosts(*asked) == hosts(stack.prefect, stack.mlflow)
