"""The parameters of every flow are those of its configuration."""

import inspect
from typing import Any

import pytest

from flows.parameters import parameters_of
from tasks.servers.deployments import FLOWS
from tasks.settings.config import (
    LearningCurveConfig,
    MonitorConfig,
    PredictionConfig,
    RerunConfig,
    RetrainConfig,
    RunConfig,
    SeedsConfig,
    SweepConfig,
)
from tasks.settings.fields import Config
from tasks.settings.loading import sections


def flows() -> dict[str, tuple[Any, type[Config]]]:
    from flows.finetune import finetune
    from flows.learning_curve import learning_curve
    from flows.monitor import monitor
    from flows.predict import predict
    from flows.rerun import rerun
    from flows.retrain import retrain
    from flows.seeds import finetune_seeds
    from flows.sweep import sweep

    return {
        "finetune": (finetune, RunConfig),
        "finetune-seeds": (finetune_seeds, SeedsConfig),
        "learning-curve": (learning_curve, LearningCurveConfig),
        "sweep": (sweep, SweepConfig),
        "retrain": (retrain, RetrainConfig),
        "predict": (predict, PredictionConfig),
        "rerun": (rerun, RerunConfig),
        "monitor": (monitor, MonitorConfig),
    }


@pytest.mark.parametrize(
    "name", [name for name in FLOWS if name not in ("sweep-runner", "predict-shard")]
)  # whose form is for no one
def test_form_of_each_flow_has_every_field_as_its_configuration_has_it(name: str) -> None:
    flow, kind = flows()[name]
    assert flow.name == name
    form, schema = flow.parameters.model_dump_for_openapi(), kind.model_json_schema()
    advanced = form["properties"].pop("advanced", None)
    assert list(form["properties"]) == list(kind.model_fields) and bool(advanced) == any(sections(kind))
    assert form.get("required", []) == schema.get("required", [])
    for field, shown in form["properties"].items():
        told = schema["properties"][field]
        for key in ("minimum", "maximum", "exclusiveMaximum", "enum", "type", "anyOf", "default", "description"):
            assert shown.get(key) == told.get(key), (field, key)
        assert shown.get("description") or shown["$ref"], field


def test_flow_is_called_with_the_defaults_of_its_configuration() -> None:
    flow, kind = flows()["retrain"]
    assert flow.validate_parameters({"seed": "5"}) == {**dict(RetrainConfig()), "seed": 5, "advanced": {}} | {
        "training": kind.model_fields["training"].default
    }


def test_description_of_a_field_wins_over_that_of_its_section() -> None:
    @parameters_of(RetrainConfig)
    def one(**given: Any) -> None:
        """Does it."""

    text = inspect.getdoc(one) or ""
    assert text.startswith("Does it.\n\nArgs:\n    model: The foundation model")
    assert "\n    tracking: Where and how the runs appear in MLflow, and the registered model" in text
