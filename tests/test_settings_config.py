"""One model of what a run may be told: YAML, dotted options, bounds, and errors that name the field."""

import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tasks.settings.config import PredictionConfig, RetrainConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEMO_DATA, DEMO_MODEL
from tasks.settings.loading import choices, field_names, load_config, nearest_name, sections, validated
from tasks.settings.methods import METHODS
from tasks.settings.sections import AdapterMethod, DataConfig, EvaluationConfig
from tasks.settings.training import TrainingConfig
from tests.conftest import ROOT, SHARED

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

FIELDS: dict[str, FieldInfo] = {
    **{f"{name}.{field}": info for name, section in sections() for field, info in section.model_fields.items()},
    **{name: info for name, info in RunConfig.model_fields.items() if name not in dict(sections())},
}
"""Every field that a user can set, by dotted name."""

NUMBERS = [name for name, info in FIELDS.items() if {info.annotation, *get_args(info.annotation)} & {int, float}]


def nested(dotted: str, value: object) -> dict[str, Any]:
    section, _, field = dotted.rpartition(".")
    return {section: {field: value}} if section else {field: value}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# what there is to set


def test_fields_are_those_of_the_design() -> None:
    design = {
        "model": "name revision dtype trust_remote_code",
        "data": "name config revision text_columns label_column train_split validation_split test_split max_length "
        "max_train_rows max_test_rows",
        "adapter": "method r alpha dropout target_modules target_parameters options",
        "training": "epochs max_steps batch_size gradient_accumulation_steps learning_rate warmup_fraction "
        "weight_decay scheduler early_stopping_patience selection_metric",
        "evaluation": "batch_size references bootstrap_samples confidence",
        "tracking": "experiment run_name tags registered_model",
    }
    names = {f"{section}.{field}" for section, fields in design.items() for field in fields.split()}
    assert {*names, "seed", "offline"} <= set(FIELDS)
    assert set(field_names()) == {*FIELDS, *design}


@pytest.mark.parametrize("name", FIELDS)
def test_field_is_described_in_sentences(name: str) -> None:
    description = FIELDS[name].description
    assert description and description[0].isupper() and description.endswith(".")


def test_there_are_numbers_to_bound() -> None:
    assert len(NUMBERS) > 15


@pytest.mark.parametrize("value", [-1, 10**12, float("nan"), float("inf")])
@pytest.mark.parametrize("name", NUMBERS)
def test_number_out_of_bounds_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(name)}: "):
        validated(nested(name, value))


def test_form_shows_descriptions_and_bounds() -> None:
    schema = RunConfig.model_json_schema()
    for name in FIELDS:
        section, _, field = name.rpartition(".")
        properties = schema["$defs"][f"{section.title()}Config"]["properties"] if section else schema["properties"]
        assert properties[field]["description"]
        if name in NUMBERS:
            assert "inimum" in str(properties[field]) and "aximum" in str(properties[field])


def test_every_peft_method_on_offer_can_be_asked_for() -> None:
    assert set(get_args(AdapterMethod)) == set(METHODS)


def test_defaults_are_the_demo() -> None:
    config = RunConfig()
    assert (config.model.name, config.data.name) == (DEMO_MODEL, DEMO_DATA)
    assert load_config() == config == validated({})


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({}, 3e-3),
        ({"adapter": {"method": "dora"}}, 3e-3),
        ({"model": {"name": "openai-community/gpt2"}}, 5e-4),
        ({"model": {"name": "gpt2"}, "adapter": {"method": "rslora"}}, 3e-4),
        ({"model": {"name": "gpt2"}, "adapter": {"method": "vera"}}, 5e-3),
        ({"model": {"name": "gpt2"}, "training": {"learning_rate": None, "epochs": 1}}, 5e-4),
        ({"model": {"name": "gpt2"}, "training": {"learning_rate": 0}}, 0),
    ],
)
def test_learning_rate_is_that_of_model_and_method_and_stands_in_the_configuration(
    values: dict[str, Any], rate: float
) -> None:
    for kind in (RunConfig, RetrainConfig):
        config: RunConfig = kind.model_validate(values)
        assert config.training.learning_rate == rate
        assert config.model_dump(mode="json")["training"]["learning_rate"] == rate
        assert kind(**config.model_dump()) == config
    assert ("lr" in config.run_name()) is (rate == 0)
    assert RetrainConfig.model_validate(values).run_config().training.learning_rate == rate


def test_ready_jobs_have_the_rates_that_their_results_were_measured_with() -> None:
    rates = {path.stem: load_config(path).training.learning_rate for path in ROOT.glob("configs/*.yaml")}
    assert rates == {
        "distilbert-rotten-tomatoes": 5e-4,
        "gpt2-rotten-tomatoes": 5e-4,
        "local-files": 5e-4,
        "minilm-rotten-tomatoes": 1e-3,
        "roberta-ag-news": 3e-4,
    }


def test_configuration_cannot_be_changed_afterwards() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.data.max_length = 8


def test_data_section_can_name_what_was_read() -> None:
    assert hash(DataConfig()) == hash(DataConfig(max_length=128))
    assert len({DataConfig(), DataConfig(max_length=64)}) == 2


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "demo-gpt2 · demo-reviews · lora r8"),
        ({"training": {"learning_rate": 1e-3}, "seed": 2}, "demo-gpt2 · demo-reviews · lora r8 · lr 0.001 · seed 2"),
        ({"model": {"name": "openai-community/gpt2"}, "data": {"name": "a/b"}}, "gpt2 · b · lora r8"),
        ({"data": {"name": "some/where/reviews.v2.csv"}, "adapter": {"r": 4}}, "demo-gpt2 · reviews.v2 · lora r4"),
        ({"adapter": {"method": "ia3"}}, "demo-gpt2 · demo-reviews · ia3"),
        ({"tracking": {"run_name": "mine"}}, "mine"),
    ],
)
def test_run_is_named_by_what_it_does(values: dict[str, Any], name: str) -> None:
    assert validated(values).run_name() == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("reviews/3", "reviews/3"),
        ("models:/reviews/3", "reviews/3"),
        ("models:/reviews@champion", "reviews@champion"),
        ("some/where/adapter", "adapter"),
    ],
)
def test_prediction_is_named_by_its_model(model: str, name: str) -> None:
    config = PredictionConfig(model=model, input="some/july.csv", output="o.csv")
    assert config.run_name() == f"{name} · july.csv"


def test_one_of_several_seeds_is_named_by_its_own() -> None:
    assert validated({"seed": 7}).name_of("seed 8") == "demo-gpt2 · demo-reviews · lora r8 · seed 8"
    assert len(validated({"tracking": {"run_name": "x" * 250}}).name_of("3 seeds")) <= 250


# YAML and dotted options


def test_options_replace_what_the_file_says(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  epochs: 5\n  batch_size: 4\nseed: 3\n")
    config = load_config(path, {"training.epochs": "2", "adapter.method": "dora", "seed": "7"})
    assert (config.training.epochs, config.training.batch_size, config.seed) == (2, 4, 7)
    assert config.adapter.method == "dora"


def test_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = validated({"data": {"text_columns": ["a", "b"]}, "adapter": {"options": {"x": [1]}}, "seed": 5})
    assert load_config(written(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "training:\n# epochs: 3\n"])
def test_what_is_left_empty_keeps_its_default(text: str, tmp_path: Path) -> None:
    assert load_config(written(tmp_path, text)) == RunConfig()
    assert load_config(written(tmp_path, text), {"training.epochs": "5"}).training.epochs == 5


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("data.text_columns", "premise,hypothesis", ("premise", "hypothesis")),
        ("data.text_columns", "[premise, hypothesis]", ("premise", "hypothesis")),
        ("data.text_columns", "body", ("body",)),
        ("adapter.target_modules", "c_attn, c_proj", ("c_attn", "c_proj")),
        ("adapter.target_modules", "", ()),
        ("adapter.options", "{use_dora: true, layers: [0, 1]}", {"use_dora": True, "layers": [0, 1]}),
        ("evaluation.references", "[]", ()),
        ("evaluation.references", "majority", ("majority",)),
        ("evaluation.zero_shot_template", "{text} It is {label}", "{text} It is {label}"),
        ("evaluation.zero_shot_words", "{neg: awful, pos: great}", {"neg": "awful", "pos": "great"}),
        ("evaluation.zero_shot_words", "{0: awful, 1: great}", {"0": "awful", "1": "great"}),
        ("evaluation.zero_shot_words", "", {}),
        ("tracking.tags", "{team: search, stage: 2}", ("team=search", "stage=2")),
        ("tracking.tags", "team=search,stage=2", ("team=search", "stage=2")),
        ("data.max_train_rows", "null", None),
        ("data.max_train_rows", "100", 100),
        ("data.config", "", None),
        ("training.learning_rate", "5e-4", 0.0005),
        ("offline", "true", True),
        ("offline", "no", False),
        ("tracking.experiment", "2024-01-01", "2024-01-01"),
    ],
)
def test_command_line_text_becomes_the_value_of_its_field(dotted: str, text: str, value: object) -> None:
    read: Any = load_config(overrides={dotted: text})
    for part in dotted.split("."):
        read = getattr(read, part)
    assert read == value and type(read) is type(value)


def test_number_written_with_an_exponent_in_yaml_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 takes 5e-4, without a point, for text
    assert load_config(written(tmp_path, "training: {learning_rate: 5e-4}")).training.learning_rate == 0.0005


# errors


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"training": {"lr": 1}}, "training.learning_rate"),
        ({"training": {"learnin_rate": 1}}, "training.learning_rate"),
        ({"evaluation": {"batchsize": 1}}, "evaluation.batch_size"),
        ({"training": {"batchsize": 1}}, "training.batch_size"),
        ({"modle": {"name": "x"}}, "model"),
        ({"sed": 1}, "seed"),
        ({"epochs": 1}, "training.epochs"),
        ({"zzz": 1}, None),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_name(values: dict[str, Any], nearest: str | None) -> None:
    with pytest.raises(InputError, match="unknown field") as refused:
        validated(values)
    said = re.search(r"did you mean (\S+)\?", str(refused.value))
    assert (said and said[1]) == nearest
    assert nearest or "--help" in str(refused.value)


def test_wrong_section_name_is_no_obstacle_to_the_field() -> None:
    assert nearest_name("modle.name", field_names()) == "model.name"
    assert nearest_name("lr.epoch", field_names()) == "training.epochs"


@pytest.mark.parametrize("values", [{"section.seed": "1"}, {"seed.x": "1"}, {"training.lr.x": "1"}])
def test_option_that_fits_no_field_is_refused(values: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_config(written(tmp_path, "seed: 3\n"), values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- model\n- data\n", "not a list"),
        ("just words\n", "not a str"),
        ("model: [1\ndata: {", "not valid YAML"),
        ("seed: !!python/object:os.system x\n", "not valid YAML"),
        ("model: gpt2\n", "model: input should be a valid dictionary"),
        ("1: 2\n", "keys should be strings"),
        ("seed: -1\ntraining: {epochs: 0}\n", "training.epochs"),
        ("data: {name: 5}\n", "data.name"),
        ("tracking: {tags: [team]}\n", "tracking.tags.0"),
    ],
)
def test_unusable_file_is_refused_in_one_line_that_names_it(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        load_config(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_config(path)
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path)


def test_further_problems_are_counted() -> None:
    with pytest.raises(InputError, match=r"\(and 2 more\)$"):
        validated({"training": {"epochs": 0, "batch_size": 0}, "seed": -1})


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(InputError) as refused:
        validated({"seed": "9" * 5000})
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("columns", [("label",), ("text", "text"), ("row",), ("input_ids", "text")])
def test_text_columns_that_would_clash_are_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"^data: text_columns"):
        validated({"data": {"text_columns": columns}})


# the ready configurations


def test_there_is_one_configuration_for_each_kind_of_job() -> None:
    ready = {path.stem: load_config(path) for path in CONFIGS}
    assert ready["gpt2-rotten-tomatoes"].model.name == "openai-community/gpt2"
    assert {config.data.name for config in ready.values()} >= {
        "cornell-movie-review-data/rotten_tomatoes",
        "fancyzhx/ag_news",
        "./my-data",
    }
    assert any("bert" in config.model.name for config in ready.values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_ready_configuration_is_short_and_says_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 20
    load_config(path)


@pytest.mark.hub
def test_no_review_is_longer_than_the_reference_job_says() -> None:
    from transformers import PreTrainedTokenizerFast

    path = ROOT / "configs/gpt2-rotten-tomatoes.yaml"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(SHARED / "data/gpt2-tokenizer/tokenizer.json"))
    texts = [
        text
        for split in ("train", "validation", "test")
        for text in pd.read_parquet(SHARED / f"data/rotten_tomatoes/{split}.parquet")["text"]
    ]
    longest = max(map(len, tokenizer(texts)["input_ids"]))
    assert f"the longest review has {longest} GPT-2 tokens" in path.read_text(encoding="utf-8")
    assert longest <= load_config(path).data.max_length
    assert f"{8530:,} film reviews" in path.read_text(encoding="utf-8") and len(texts) == 8530 + 2 * 1066


@pytest.mark.parametrize("name", ["length", "flip", "true_label", "tuned_probability"])
def test_text_column_with_a_name_of_ours_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"text_columns: the run needs the name '{name}' itself"):
        validated({"data": {"text_columns": ["text", name]}})


def test_form_says_the_bounds_of_each_number() -> None:
    fields = validated({}).adapter.model_json_schema()["properties"]
    assert fields["r"]["description"].endswith("(≥ 1, ≤ 4,096)")
    assert fields["dropout"]["description"].endswith("(≥ 0, < 1)")
    rows = validated({}).data.model_json_schema()["properties"]["max_train_rows"]
    assert rows["description"].endswith("None: all. (≥ 2, ≤ 1,000,000,000)")
    assert "≥" not in fields["method"]["description"]


@pytest.mark.parametrize(
    "name", ["reviews", "anna's reviews", "a-b_c.d", "é ñ 映", "100 %", "(a); [b] & `c` #1", "x" * 200]
)
def test_name_that_mlflow_and_every_command_take_is_a_models(name: str) -> None:
    assert validated({"tracking": {"registered_model": name}}).tracking.registered_model == name


@pytest.mark.parametrize(
    "name",
    [
        *("a/b", "a:b", "a?b", "a@b", 'a"b', " ", "\u00a0", " a", "a ", ".", "..", ".a", "~a", "-a", "\\a"),
        *("0123456789abcdef" * 2, "m-" + "0" * 32, "reviews.csv", "a\nb", "x" * 201, ""),
    ],
)
def test_name_that_would_fail_after_the_training_is_refused_before_it(name: str) -> None:
    with pytest.raises(InputError, match=r"^tracking\.registered_model: "):
        validated({"tracking": {"registered_model": name}})


@pytest.mark.parametrize("field", ["experiment", "run_name"])
def test_blank_name_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=rf"^tracking\.{field}: must be a name that can be read"):
        validated({"tracking": {field: "  "}})


def test_choices_of_a_field_that_may_be_left_empty_are_known() -> None:
    assert choices(TrainingConfig, "selection_metric")[:2] == ("accuracy", "macro_f1")
    assert choices(TrainingConfig, "scheduler")[0] == "linear"
    assert choices(TrainingConfig, "epochs") == choices(EvaluationConfig, "references") == ()


@pytest.mark.parametrize(("given", "value"), [(2, "2"), ("2", "2"), ("auto", "auto"), (32, "32")])
def test_processes_are_a_number_or_auto(given: object, value: object) -> None:
    assert validated({"training": {"processes": given}}).training.processes == value


@pytest.mark.parametrize("given", [True, 2.0, "2.0", None, "", "9" * 20, [2]])
def test_anything_else_is_no_number_of_processes(given: object) -> None:
    with pytest.raises(InputError, match=r"^training\.processes: must be a (whole )?number"):
        validated({"training": {"processes": given}})


def test_rows_of_a_batch_must_be_a_multiple_of_the_processes() -> None:
    with pytest.raises(InputError, match=r"^training: batch_size 10 cannot be divided over 4 processes; try 12$"):
        validated({"training": {"batch_size": 10, "processes": 4}})
