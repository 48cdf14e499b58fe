"""The sections of a configuration: model, data, adapter, evaluation, tracking; training.py has the sixth."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from tasks.settings.fields import Config, ModelName, Name, Revision
from tasks.settings.fixed import DEMO_DATA, DEMO_MODEL, RESERVED_COLUMNS, ZERO_SHOT_TEMPLATE
from tasks.settings.rivals import ReferenceName


class ModelConfig(Config):
    """The foundation model that the adapter is trained on."""

    name: str = Field(DEMO_MODEL, min_length=1, description="Hub id or local folder of the foundation model.")
    revision: Revision = Field("main", min_length=1, description="Branch, tag or commit of a model on the Hub.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the frozen weights and of the trained head; bfloat16 is slow on most CPUs.",
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none",
        description="Keep weights of frozen linear layers in 4 bits (nf4) or 8 (int8), all else in float32. Products "
        "are bfloat16 where the machine has units for it. Needs peft-flow[quantized].",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model. Leave off unless you trust its authors.",
    )

    @field_validator("quantization", mode="before")
    @classmethod
    def _as_word(cls, value: object) -> object:
        """On the command line `none` is no value at all."""
        return "none" if value is None else value

    @model_validator(mode="after")
    def _leaves_the_rest_float32(self) -> Self:
        if self.quantization != "none" and self.dtype != "float32":
            raise ValueError(f"with quantization {self.quantization} all else is float32; leave dtype {self.dtype} out")
        return self


TaskName = Literal["auto", "single_label", "multi_label", "regression"]
"""The files of tasks/scores/objectives, spelled out because the form and the type checker need literals."""


class DataConfig(Config):
    """The texts and labels, and which part of them is used for what."""

    name: str = Field(
        DEMO_DATA,
        min_length=1,
        description="Hub id, local folder, or a csv, tsv, json, jsonl, parquet, xlsx or arrow file, also packed.",
    )
    config: str | None = Field(
        None, description="Configuration (subset) of a Hub data set that has several. None: its only one."
    )
    revision: Revision = Field("main", min_length=1, description="Branch, tag or commit of a data set on the Hub.")
    text_columns: tuple[str, ...] = Field(
        ("text",), min_length=1, max_length=2, description="One text column, or two for pairs of texts."
    )
    task: TaskName = Field(
        "auto",
        description="What is learned: single_label (one class for each text), multi_label (any number of labels) or "
        "regression (a number). auto: found out from the labels, and said.",
    )
    label_column: str = Field(
        "label",
        min_length=1,
        description="Column that holds the class; or several labels, as a list or as words with a separator; "
        "or a number.",
    )
    label_columns: tuple[str, ...] = Field(
        (),
        description="Several labels as columns of 0 and 1, in place of label_column.",
    )
    train_split: str = Field("train", min_length=1, description="Split to train on.")
    validation_split: str = Field(
        "validation",
        min_length=1,
        description="Split that chooses the best checkpoint; cut from train when there is none called 'validation', "
        "or when train_split or test_split names the same.",
    )
    test_split: str = Field(
        "test",
        min_length=1,
        description="Split that is measured once, at the end; cut from train when there is none called 'test', or when "
        "train_split names the same. For a test split without labels, 'validation' measures on the validation rows.",
    )
    test_file: str | None = Field(
        None,
        min_length=1,
        description="File whose rows are the test rows, in place of test_split; other rows of the data with the same "
        "texts are excluded from training. Each run logs its test rows as comparison/test.parquet. None: test_split.",
    )
    corrections: str | None = Field(
        None,
        min_length=1,
        description="File of peft-flow review, filled in: train and validation rows get its corrected_label.",
    )
    max_length: int = Field(128, ge=4, le=131_072, description="Tokens kept of each text; the rest is cut off.")
    max_train_rows: int | None = Field(
        None,
        ge=2,
        le=10**9,
        description="Use at most this many training rows, drawn stratified: by class, by set of labels, or by tenths "
        "of the numbers. None: all.",
    )
    max_test_rows: int | None = Field(
        None, ge=2, le=10**9, description="Use at most this many rows of validation and of test, each. None: all."
    )
    split_seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the splits that are cut and the rows that are drawn; runs that differ only in `seed` "
        "see the same rows.",
    )
    draw_seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="Seed of the training rows that max_train_rows draws; validation and test stay as they are. None: "
        "split_seed.",
    )

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns, field = (
            (*self.text_columns, *self.target_columns),
            "label_columns" if self.label_columns else "label_column",
        )
        if len(set(columns)) < len(columns):
            raise ValueError(f"text_columns and {field} must be different columns, not {', '.join(columns)}")
        if len(self.label_columns) == 1:
            raise ValueError("label_columns: give two or more; a single column is label_column")
        if self.label_columns and self.task not in ("auto", "multi_label"):
            raise ValueError(f"label_columns are several labels, which task {self.task} does not have; leave one out")
        if taken := sorted(RESERVED_COLUMNS.intersection(self.text_columns)):
            raise ValueError(f"text_columns: the run needs the name '{taken[0]}' itself; rename that column")
        if "row" in self.target_columns:
            raise ValueError(f"{field}: the run needs the name 'row' itself; rename that column")
        return self

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Those with the labels."""
        return self.label_columns or (self.label_column,)


AdapterMethod = Literal[
    "lora", "dora", "rslora", "adalora", "adamss", "beft", "boft", "c3a", "deft", "delora", "fourierft", "glora",
    "gralora", "hira", "hra", "ia3", "ln_tuning", "loha", "lokr", "miss", "oft", "peanut", "prompt_tuning", "psoft",
    "pvera", "randlora", "road", "shira", "supertuning", "tinylora", "unilora", "vblora", "vera", "waveft",
]  # fmt: skip
"""The keys of tasks.settings.methods.METHODS, spelled out because the form and the type checker need literals."""


class AdapterConfig(Config):
    """The small set of weights that is trained; the foundation model itself stays as it is."""

    method: AdapterMethod = Field("lora", description="PEFT method; lora and dora are the usual ones.")
    r: int = Field(8, ge=1, le=4096, title="Rank (r)", description="Rank: width of the low-rank update.")
    alpha: float = Field(16, gt=0, le=65_536, description="Scale of the update; it is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training.")
    target_modules: tuple[str, ...] = Field(
        (), description="Names of the layers to adapt. Empty: those that suit the architecture."
    )
    target_parameters: tuple[str, ...] = Field(
        (),
        description="Names of weights without a layer of their own to adapt besides, as a mixture's experts: "
        "mlp.experts.gate_up_proj, mlp.experts.down_proj. With lora and rslora, without dropout. Empty: none.",
    )
    layers: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Adapt this many of the model's blocks, the top ones. Those below are computed once, without "
        "dropout, for all epochs: with half of the blocks twice as fast, at the cost of a little accuracy. None: all.",
    )
    options: dict[str, Any] = Field(
        {},
        description='Further fields of the method\'s own peft configuration, for example {"use_rslora": true}.',
    )


class EvaluationConfig(Config):
    """How foundation model and adapter are measured and compared."""

    batch_size: int = Field(64, ge=1, le=65_536, description="Most rows in one forward pass.")
    references: tuple[ReferenceName, ...] = Field(
        get_args(ReferenceName),
        description="What else is measured on the same test rows: the majority class, TF-IDF with logistic regression, "
        "a linear probe on the frozen model, its own language head asked in words before training, and the champion of "
        "tracking.registered_model where there is one.",
    )
    zero_shot_template: str | None = Field(
        None,
        description="What zero_shot asks the model's language head: each class by how likely its words are at {label}, "
        f"after the test row's text at {{text}}. None: {ZERO_SHOT_TEMPLATE}",
    )
    zero_shot_words: dict[str, str] = Field(
        {},
        description="Words for classes whose names say too little, for example {neg: terrible, pos: great}. The others "
        "go by their names, underscores as spaces.",
    )
    bootstrap_samples: int = Field(
        2000, ge=200, le=1_000_000, description="Resamplings of the test rows behind each interval."
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="Confidence of the intervals and of the verdict.")

    @property
    def asking_zero_shot(self) -> list[str]:
        """Fields that ask for it by name. That it is among the default references asks for nothing: it is left out
        where it cannot be measured."""
        by_name = "zero_shot" in self.references and set(self.references) != set(get_args(ReferenceName))
        asked = {
            "references": by_name,
            "zero_shot_template": self.zero_shot_template,
            "zero_shot_words": self.zero_shot_words,
        }
        return [field for field, given in asked.items() if given]

    @field_validator("zero_shot_template")
    @classmethod
    def _asks_about_the_text(cls, template: str | None) -> str | None:
        """A decoder has read only what stands before the label."""
        if template is None:
            return None
        before, text, rest = template.partition("{text}")
        between, label, after = rest.partition("{label}")
        again = "{text}" in rest or "{label}" in before + after
        if not (text and label and between.strip()) or again:
            raise ValueError(
                "must hold {text} and then {label}, once each, with words between, for example "
                f"'{ZERO_SHOT_TEMPLATE}', not {template!r:.80}"
            )
        return template

    @field_validator("zero_shot_words", mode="before")
    @classmethod
    def _names_are_words(cls, words: object) -> object:
        """YAML reads a class that is called 1 as a number; nothing is no words."""
        return {str(name): word for name, word in words.items()} if isinstance(words, dict) else words or {}

    @field_validator("zero_shot_words")
    @classmethod
    def _words_differ(cls, words: dict[str, str]) -> dict[str, str]:
        said = [word.strip() for word in words.values()]
        for name, word in zip(words, said, strict=True):
            if not word or said.count(word) > 1:
                raise ValueError(f"class '{name}' must have a word of its own, not {word!r:.80}")
        return dict(zip(words, said, strict=True))


def check_tag(tag: str) -> str:
    """`tag`, whose name MLflow takes; ValueError where it would refuse it, after the run has begun."""
    name, equals, _ = tag.partition("=")
    if not equals:
        raise ValueError(f"must be name=value, not '{tag}'")
    if not re.fullmatch(r"[\w.\-: /]{1,250}", name) or {"", ".", ".."}.intersection(name.split("/")):
        raise ValueError(f"'{name}' is not a name for a tag; use letters, digits and _ . - : in it")
    return tag


class TrackingConfig(Config):
    """Where and how the run appears in MLflow."""

    experiment: Name = Field("peft-flow", description="MLflow experiment that the run belongs to.")
    run_name: Name | None = Field(None, description="Name of the run. None: model · data · method.")
    tags: tuple[Annotated[str, AfterValidator(check_tag)], ...] = Field(
        (), description="Tags to set on the run, each as name=value, for example team=search."
    )
    registered_model: ModelName | None = Field(
        None, description="Register the model under this name. None: do not register it."
    )

    @field_validator("tags", mode="before")
    @classmethod
    def _tags_of_a_mapping(cls, value: object) -> object:
        """In YAML they may be written `{team: search}`."""
        return tuple(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else value
