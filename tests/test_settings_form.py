"""The form in Prefect: the fields that people set first, all others under `advanced`, and no name twice."""

from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tasks.servers import deployments
from tasks.settings.config import RetrainConfig, RunConfig, SweepConfig
from tasks.settings.fields import Config
from tasks.settings.form import FIRST, FOLDED, folded, form, unfolded
from tasks.settings.loading import checked, field_names, sections
from tests.conftest import ROOT

KINDS: dict[str, type[Config]] = {"finetune": RunConfig, "retrain": RetrainConfig, "sweep": SweepConfig}

OWN = {"model": {"name": "a/b"}, "data": {"name": "c.csv"}}
"""Somebody's job."""


def form_of(flow: str) -> dict[str, Any]:
    """As the server has it."""
    found = getattr(import_module(f"flows.{flow}"), flow)
    schema = form(deployments.fillable(found.parameters.model_dump_for_openapi()))
    return {**schema, "additionalProperties": False}


def shown(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and schema of each field of a page, of the open form too; sections among them."""
    for name, field in sorted(schema["properties"].items(), key=lambda pair: pair[1].get("position", 0)):
        yield field["title"], field
        inner = next((one for one in field.get("anyOf", ()) if one["properties"]), field)
        if inner.get("properties"):
            yield from shown(inner)
        assert name == field["title"].rpartition(".")[2]


def refusals(values: dict[str, Any], flow: str = "finetune", **how: bool) -> list[str]:
    """What the server says, with the path of the field."""
    from prefect.utilities.schema_tools.validation import validate

    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validate(values, form_of(flow), **how)
    ]


def test_the_eight_fields_that_people_set_come_first() -> None:
    titles = [title for title, field in shown(form_of("finetune")) if "properties" not in field]
    eight = [f"{section}.{field}" for section, fields in FIRST.items() for field in fields]
    assert titles[: titles.index("advanced")] == eight and len(eight) == 8
    assert eight[1:5] == ["data.name", "data.text_columns", "data.label_column", "data.task"]


@pytest.mark.parametrize("flow", KINDS)
def test_every_field_is_on_the_page_once_by_the_name_that_it_has_everywhere(flow: str) -> None:
    titles = [title for title, _ in shown(form_of(flow))]
    assert len(titles) == len(set(titles))
    fields = set(field_names(KINDS[flow])) - {name for name, _ in sections(KINDS[flow])}
    assert fields <= set(titles)
    headings = set(titles) - fields - {"advanced"}
    assert {title.removeprefix("advanced.") for title in headings} == {name for name, _ in sections(KINDS[flow])}


def test_advanced_is_folded_until_somebody_opens_it() -> None:
    closed, opened = form_of("finetune")["properties"]["advanced"]["anyOf"]
    assert closed["properties"] == {} and len(opened["properties"]) == 8


@pytest.mark.parametrize("flow", KINDS)
def test_no_field_is_of_two_kinds_or_of_none(flow: str) -> None:
    for title, field in shown(form_of(flow)):
        assert title == "advanced" or not ({"anyOf", "$ref"} & field.keys() or field["type"] == "null"), title


def test_somebodys_own_job_begins_without_the_demos_model_and_data() -> None:
    assert "demo-" not in str(form_of("finetune")["properties"]).replace("demo's model", "")
    assert [line.partition(": ")[2] for line in refusals({})] == [
        "'model' is a required property",
        "'data' is a required property",
    ]
    assert refusals({**OWN, "model": {}}) == ["model: 'name' is a required property"]
    assert not refusals(OWN)
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for entry in entries:
        if "Quick run" in entry["description"]:
            assert not refusals(folded(entry["parameters"], entry["entrypoint"]), entry["entrypoint"].split(".")[1])


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"training": {"epochs": 0}}, "training.epochs: 0 is less than the minimum of 1"),
        ({"advanced": {"adapter": {"r": 0}}}, "advanced.adapter.r: 0 is less than the minimum of 1"),
        ({"adapter": {"r": 0}}, "adapter.r: 0 is less than the minimum of 1"),  # as an older form has it
        ({"training": {"batch_size": 0}}, "training.batch_size: 0 is less than the minimum of 1"),
        ({"advanced": {"seed": "x"}}, "advanced.seed: 'x' is not of type 'integer'"),
    ],
)
def test_refused_value_is_named_by_its_field_and_bound(values: dict[str, Any], refused: str) -> None:
    assert refusals({**OWN, **values}) == [refused]


@pytest.mark.parametrize(
    "values",
    [
        {"learning": 1},
        {"training": {"learning": 1}},
        {"advanced": {"learning": 1}},
        {"advanced": {"training": {"learning": 1}}},
    ],
)
def test_unknown_name_is_refused_wherever_it_stands(values: dict[str, Any]) -> None:
    (refused,) = refusals({**OWN, **values})
    assert "learning" in refused


OLD: dict[str, Any] = {
    "model": {"name": "a/b", "revision": "v1"},
    "data": {"name": "c.csv", "max_length": 64, "text_columns": ["title"]},
    "adapter": {"method": "dora", "r": 4},
    "training": {"epochs": 2, "batch_size": 8},
    "tracking": {"registered_model": "reviews"},
    "seed": 3,
}
"""Parameters as they were saved before there was `advanced`."""


def test_parameters_that_were_saved_before_are_taken_and_mean_the_same() -> None:
    for flow, kind in (("finetune", RunConfig), ("retrain", RetrainConfig)):
        assert not refusals(OLD, flow)
        now = folded(OLD, f"flows.{flow}.{flow}")
        assert not refusals(now, flow)
        assert unfolded(now) == unfolded(OLD) == OLD
        assert checked(kind, unfolded(now)) == checked(kind, OLD)
    assert folded(OLD, "flows.finetune.finetune") == {
        "model": {"name": "a/b"},
        "data": {"name": "c.csv", "text_columns": ["title"]},
        "training": {"epochs": 2},
        "advanced": {
            "model": {"revision": "v1"},
            "data": {"max_length": 64},
            "adapter": {"method": "dora", "r": 4},
            "training": {"batch_size": 8},
            "tracking": {"registered_model": "reviews"},
            "seed": 3,
        },
    }
    assert folded(OLD, "flows.retrain.retrain")["tracking"] == {"registered_model": "reviews"}


def test_flows_that_are_folded_are_those_with_sections() -> None:
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for entry in entries:
        module, _, name = entry["entrypoint"].rpartition(".")
        properties = getattr(import_module(module), name).parameters.properties
        assert ("advanced" in properties) == (name in FOLDED), entry["name"]
    given = {"input": "a.csv", "offline": True}
    assert folded(given, "flows.predict.predict") == given


def test_redeploying_moves_what_people_have_set_to_where_the_form_shows_it() -> None:
    there = SimpleNamespace(parameters=OLD, parameter_openapi_schema={"properties": {"seed": {}}})
    entry = {"name": "finetune", "entrypoint": "flows.finetune.finetune", "parameters": {"seed": 1}}
    before = {**entry, "parameters": {"seed": 1}}
    moved = deployments.adapted(entry, there, before)["parameters"]
    assert moved == folded(OLD, entry["entrypoint"])
    there.parameters = moved  # the second time nothing moves
    assert deployments.adapted(entry, there, before)["parameters"] == moved


def test_what_an_older_schedule_or_automation_says_counts_over_what_the_deployment_has_under_advanced() -> None:
    """Prefect puts the parameters of the one over those of the other, by their first names."""
    deployment = folded(OLD, "flows.finetune.finetune")
    for told in (
        {"training": {"batch_size": 4}},
        {"training": {"epochs": 1, "batch_size": 4}, "seed": 0},
        {"adapter": {"r": 2}, "seed": 8},
        {"data": {"name": "d.csv", "max_length": 16}, "offline": True},
    ):
        assert checked(RunConfig, unfolded({**deployment, **told})) == checked(RunConfig, {**OLD, **told}), told
    kept = unfolded({**deployment, "training": {"epochs": 9}})["training"]
    assert kept == {"epochs": 9, "batch_size": 8}  # as the form of today says it
    filled = {**dict(RunConfig()), **deployment}  # as Prefect calls the flow
    assert unfolded(filled, dict(RunConfig()))["seed"] == 3
    assert unfolded({**filled, "seed": 8}, dict(RunConfig()))["seed"] == 8


@pytest.mark.parametrize(
    ("set_by_people", "names"),
    [
        ({"training": {"epochs": 5}}, ("demo-gpt2", "demo-reviews")),
        ({"model": {"name": "a/b"}}, ("a/b", "demo-reviews")),
        ({}, None),
    ],
)
def test_job_that_took_the_demo_from_an_older_form_goes_on_with_it(set_by_people: Any, names: Any) -> None:
    there = SimpleNamespace(parameters=set_by_people, parameter_openapi_schema={"properties": {"seed": {}}})
    entry = {"name": "finetune", "entrypoint": "flows.finetune.finetune"}
    moved = deployments.adapted(entry, there, entry)["parameters"]
    if names is None:  # nobody has said anything: the form of today begins with nothing there
        assert moved == {}
        return
    assert (moved["model"]["name"], moved["data"]["name"]) == names and not refusals(moved, "finetune")
    there.parameter_openapi_schema = {"properties": {"advanced": {}}}
    there.parameters = {"training": {"epochs": 5}}  # and in the form of today an empty name is nobody's demo
    assert deployments.adapted(entry, there, entry)["parameters"] == there.parameters


def test_flow_puts_advanced_fields_into_their_sections_and_checks_them() -> None:
    from flows.parameters import parameters_of
    from tasks.settings.fields import InputError

    told: dict[str, Any] = {}

    @parameters_of(RunConfig)
    def one(**given: Any) -> None:
        told.update(given)

    one(**RunConfig.model_validate(OWN | {"training": {"epochs": 2}}).model_dump(include={"model", "data", "training"}))
    assert told["training"]["epochs"] == 2 and "advanced" not in told
    one(**OWN, training={"epochs": 5}, advanced={"training": {"batch_size": 4}, "seed": 7})
    assert (told["training"].epochs, told["training"].batch_size, told["seed"]) == (5, 4, 7)
    assert told["model"].name == "a/b"
    with pytest.raises(InputError, match=r"unknown field 'training.batch_sze'; did you mean training.batch_size?"):
        one(**OWN, advanced={"training": {"batch_sze": 4}})
