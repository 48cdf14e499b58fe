from pathlib import Path
from typing import Any

import pytest

from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import read_yaml
from tasks.settings.space import grid, read_space, values_of, with_values

RATE = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def fields(space: Any) -> list[str]:
    return [one.field for one in read_space(space, RunConfig())]


def test_fields_stand_in_their_sections_or_by_dotted_name(tmp_path: Path) -> None:
    (file := tmp_path / "space.yaml").write_text(
        "training:\n  learning_rate: {low: 1e-4, high: 1e-2, log: true}\nadapter.r: [4, 8]\nseed: [0, 1]\n"
    )
    rate, rank, seed = read_space(read_yaml(file), RunConfig())
    assert (rate.field, rate.low, rate.high, rate.log, rate.whole) == (
        "training.learning_rate",
        1e-4,
        1e-2,
        True,
        False,
    )
    assert (rank.field, rank.choices) == ("adapter.r", (4, 8))
    assert (seed.field, seed.choices) == ("seed", (0, 1))


def test_values_are_as_the_field_has_them() -> None:
    space = {"adapter.r": ["4", 8], "training.weight_decay": ["1e-2", 0], "adapter.target_modules": ["q,v", ["q"]]}
    found = read_space(space, RunConfig())
    assert [one.choices for one in found] == [(4, 8), (0.01, 0.0), (("q", "v"), ("q",))]
    (whole,) = read_space({"training.epochs": {"low": 1, "high": 5, "step": 2}}, RunConfig())
    assert whole.whole and whole.steps() == (1, 3, 5)


def test_field_stands_behind_those_that_it_depends_on() -> None:
    space = {
        "adapter.dropout": {"low": 0, "high": 0.2, "when": {"adapter.r": 8}},
        "adapter.r": [4, 8],
        "adapter.method": ["lora", "ia3"],
    }
    assert fields(space) == ["adapter.method", "adapter.r", "adapter.dropout"]


def test_grid_has_each_combination_once_and_nothing_that_has_no_effect() -> None:
    space = read_space({"adapter.r": [4, 8], "adapter.method": ["lora", "ia3"], "seed": [0, 1]}, RunConfig())
    found = [(one["adapter.method"], one.get("adapter.r"), one["seed"]) for one in grid(space, values_of(RunConfig()))]
    assert sorted(found, key=str) == sorted(
        [("lora", r, seed) for r in (4, 8) for seed in (0, 1)] + [("ia3", None, seed) for seed in (0, 1)], key=str
    )


def test_rate_that_was_left_to_the_method_follows_the_method() -> None:
    base = RunConfig.model_validate({"model": {"name": "gpt2"}})
    assert with_values(base, {"adapter.method": "ia3"}).training.learning_rate == 5e-3
    told = RunConfig.model_validate({"model": {"name": "gpt2"}, "training": {"learning_rate": 2e-3}})
    assert with_values(told, {"adapter.method": "ia3"}).training.learning_rate == 2e-3


def test_values_that_are_applied_leave_all_else_as_it_is() -> None:
    base = RunConfig.model_validate({"training": {"epochs": 7}, "seed": 3})
    changed = with_values(base, {"training.batch_size": 4, "seed": 5})
    assert values_of(changed) == values_of(base) | {"training.batch_size": 4, "seed": 5}
    assert with_values(base, {}) == base


BAD: list[tuple[Any, str]] = [
    ({}, "the space is empty"),
    ({"training": [1, 2]}, "'training' is a section"),
    ({"training": {"learning_rate": [1e-3, 1e-4]}, "training.learning_rate": [1e-3, 1e-2]}, "is there twice"),
    ({"training.lr": [1e-3, 1e-4]}, r"unknown field 'training.lr'; did you mean training.learning_rate\?"),
    ({"adapter.rank": [4, 8]}, "unknown field 'adapter.rank'"),
    ({"rank": [4, 8]}, "unknown field 'rank'"),
    ({"data.test_split": ["a", "b"]}, "data.test_split must be the same for all trials"),
    ({"evaluation.confidence": [0.9, 0.95]}, "evaluation.confidence must be the same for all trials"),
    ({"tracking.experiment": ["a", "b"]}, "tracking.experiment must be the same for all trials"),
    ({"training.selection_metric": ["accuracy", "macro_f1"]}, "must be the same for all trials"),
    ({"model.trust_remote_code": [True, False]}, "must be the same for all trials"),
    ({"offline": [True, False]}, "offline must be the same for all trials"),
    ({"adapter.r": 8}, "adapter.r must be a list of choices, or low and high, not 8"),
    ({"adapter.r": []}, "adapter.r has no choices"),
    ({"adapter.r": [8]}, "adapter.r has one choice"),
    ({"adapter.r": [8, "8"]}, "adapter.r has the same choice twice"),
    ({"adapter.r": [0, 8]}, "adapter.r: input should be greater than or equal to 1, not 0"),
    ({"adapter.r": [8, 4.5]}, "adapter.r: input should be a valid integer"),
    ({"adapter.method": ["lora", "lorra"]}, "adapter.method: input should be"),
    ({"adapter.method": {"low": 1, "high": 2}}, "adapter.method: input should be"),
    ({"training.scheduler": ["linear", None]}, "training.scheduler: input should be"),
    ({"training.learning_rate": {"low": 1e-4}}, "has no high; a range needs low and high"),
    ({"training.learning_rate": {"lo": 1e-4, "high": 1}}, r"unknown entry 'lo'; did you mean low\?"),
    ({"training.learning_rate": {"low": 1e-2, "high": 1e-4}}, "low must be less than high"),
    ({"training.learning_rate": {"low": 1e-2, "high": 1e-2}}, "low must be less than high"),
    ({"training.learning_rate": {"low": 0, "high": 1e-2, "log": True}}, "low must be above 0 where log is true"),
    ({"training.learning_rate": {"low": "small", "high": 1}}, "learning_rate.low must be a number, not 'small'"),
    ({"training.learning_rate": {"low": True, "high": 2}}, "learning_rate.low must be a number, not True"),
    ({"training.learning_rate": {"low": 1e-3, "high": float("inf")}}, "learning_rate.high must be a number"),
    ({"training.learning_rate": {"low": 1e-3, "high": 100}}, "training.learning_rate: input should be less than"),
    ({"training.learning_rate": {"low": 1e-3, "high": 1, "log": "yes"}}, "log must be true or false"),
    ({"training.learning_rate": {"low": 1e-3, "high": 1, "log": True, "step": 0.1}}, "has step and log"),
    ({"training.learning_rate": {"low": 1e-3, "high": 1, "choices": [1, 2]}}, "has choices and low"),
    ({"training.dropout": {"low": 0, "high": 1}}, r"unknown field 'training.dropout'; did you mean adapter.dropout\?"),
    ({"training.epochs": {"low": 1, "high": 5, "step": 0.5}}, "step must be a whole number above 0"),
    ({"training.epochs": {"low": 1, "high": 5, "step": 9}}, "step must be a whole number above 0 and at most"),
    ({"training.epochs": {"low": 1, "high": 2.5}}, "training.epochs: input should be a valid integer"),
    ({"adapter.r": {"choices": [4, 8], "when": {"adapter.methd": "lora"}}}, "did you mean adapter.method"),
    ({"adapter.r": {"choices": [4, 8], "when": {"adapter.method": "ia3"}}}, "ia3.*which it never is; it can be lora"),
    ({"adapter.r": {"choices": [4, 8], "when": {"adapter.r": 4}}}, "names the field itself"),
    ({"adapter.r": {"choices": [4, 8], "when": "lora"}}, "when must name fields and their values"),
    (
        {
            "training.epochs": {"choices": [1, 2], "when": {"training.batch_size": 8}},
            "training.batch_size": {"choices": [8, 16], "when": {"training.epochs": 1}},
        },
        "wait for each other",
    ),
    (
        RATE | {"adapter.r": {"choices": [4, 8], "when": {"training.learning_rate": 1e-3}}},
        "is a range; list its choices",
    ),
]


@pytest.mark.parametrize(("space", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_space_is_refused_in_one_line(space: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        read_space(space, RunConfig())
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("sweep: ")


def test_field_that_the_method_has_nothing_for_is_refused() -> None:
    config = RunConfig.model_validate({"adapter": {"method": "ia3"}})
    with pytest.raises(InputError, match=r"adapter\.r has no effect with adapter\.method ia3"):
        read_space({"adapter.r": [4, 8], "seed": [0, 1]}, config)


def test_grid_of_a_range_needs_a_step() -> None:
    space = read_space(RATE, RunConfig())
    with pytest.raises(InputError, match="is a range without step, and a grid needs one"):
        list(grid(space, values_of(RunConfig())))
