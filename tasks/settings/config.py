"""What a run may be told: one frozen model, the same in YAML, on the command line, in the Prefect form and in Python.

Descriptions and bounds here are the command line's help and the form's labels; defaults are the embedded demo's.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.settings.methods import FEW_RATE, MATRICES_RATE, METHODS
from tasks.settings.rivals import ReferenceName
from tasks.settings.secrets import holds_secret, names_secret

DEMO_MODEL, DEMO_DATA = "demo-gpt2", "demo-reviews"


DEMO_RATE = 3e-3
"""Learning rate for the demo's model, which is tiny."""


DATA_FILES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".feather", ".arrow")


PACKED_FILES = (".gz", ".bz2", ".xz", ".zst", ".zip")


WHAT_IS_READ = (
    f"{', '.join(DATA_FILES[:-1])} and {DATA_FILES[-1]} files, also packed ({', '.join(PACKED_FILES)}), and .txt files "
    "in folders named by class"
)


SPLITS = ("train", "validation", "test")


MOST_SEEDS = 100


STORE = Path("mlruns")
"""Where everything lies that runs leave behind, in the current folder."""


DEPLOYMENTS = Path("prefect.yaml")
"""Where this is not, `peft-flow up` does not start."""


RESERVED_COLUMNS = frozenset(
    {
        *("row", "label", "labels", "length", "full_length", "input_ids", "attention_mask", "token_type_ids"),
        *("flip", "true_label", "given_label", "likely_label", "baseline_label", "tuned_label"),
        *("true_label_probability", "given_label_probability", "likely_label_probability"),
        *("baseline_probability", "tuned_probability"),
    }
)
"""What the prepared data, and the tables of single rows, call their own columns."""


def data_kind(name: str | Path) -> str | None:
    """How the rows of a file are written: `.csv` for `a.csv` and `A.CSV.gz`, `.zip` for `a.zip`; None for no data."""
    path = Path(name)
    kind, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if kind in PACKED_FILES:
        return inner if inner in DATA_FILES else kind if kind == ".zip" else None
    return kind if kind in DATA_FILES else None


class InputError(ValueError):
    """What the user gave cannot work; the message is one line that says what was given and what would do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def check_value(value: object, levels: int = 0) -> None:
    """ValueError for what no page or store can take: control characters, secrets, not-a-number, anything endless."""
    if levels > MOST_LEVELS:
        raise ValueError(f"is nested deeper than {MOST_LEVELS} levels; write it flatter")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    elif isinstance(value, int) and abs(value) >= MOST_DIGITS:
        raise ValueError("is too large a number")
    elif isinstance(value, Mapping | list | tuple):
        if len(value) > MOST_ENTRIES:
            raise ValueError(f"has {len(value):,} entries; {MOST_ENTRIES:,} are the most")
        for name, inner in value.items() if isinstance(value, Mapping) else ((None, inner) for inner in value):
            check_value(name, levels + 1)
            if isinstance(name, str) and isinstance(inner, str) and names_secret(name):
                raise ValueError(SECRET)
            check_value(inner, levels + 1)
    elif not isinstance(value, float | int | None):
        raise ValueError(f"must be made of words and numbers, not of a {type(value).__name__}")


def check_text(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters; {MOST_CHARACTERS:,} are the most")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"holds the control character {character!r}; leave it out")
    name, equals, _ = text.partition("=")
    if holds_secret(text) or (equals and names_secret(name)):
        raise ValueError(SECRET)


SECRET = (
    "holds what looks like a password or token, and configurations are stored where others can read them; "
    "leave it out and set it in the environment (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING)"
)


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def show_bounds(schema: dict[str, Any]) -> None:
    """Have each description of a form say the bounds, which the form itself shows only when they are crossed."""
    for field in schema["properties"].values():
        kinds = [field, *field.get("anyOf", ())]
        bounds = [f"{sign} {kind[key]:,}" for kind in kinds for key, sign in BOUNDS.items() if key in kind]
        if bounds:
            field["description"] = f"{field['description']} ({', '.join(bounds)})"


MOST_CHARACTERS, MOST_ENTRIES, MOST_LEVELS = 1_000, 1_000, 8
"""Of one text; of one list or mapping; of lists and mappings within each other. MLflow refuses longer parameters."""


MOST_DIGITS = 2**63
"""Whole numbers from here on fit into no store."""


MOST_BYTES = 1_000_000
"""Of a configuration file; the longest sensible one has a few thousand."""


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), json_schema_extra=show_bounds
    )

    command: ClassVar[str] = "finetune"
    """Of `peft-flow`, whose help lists the fields."""

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_kept(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float}.intersection((kind, *get_args(kind))):
            raise ValueError(f"must be a number, not {value}")  # pydantic would take `yes` for 1
        if not (isinstance(kind, type) and issubclass(kind, Config)):  # whose fields are checked one by one
            check_value(value)
        return value

    @field_validator("text_columns", "target_modules", "references", "tags", mode="before", check_fields=False)
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        """On the command line two columns are written `premise,hypothesis`; nothing is the empty list."""
        if value is None:
            return ()
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def stays_inside(name: str) -> str:
    """`name`, which becomes a path in the Hub's cache; ValueError where that would lead out of it."""
    if name.startswith("/") or "\\" in name or {"", ".", ".."}.intersection(name.split("/")):
        raise ValueError(f"must be a name, not the path '{name}'")
    return name


Revision = Annotated[str, AfterValidator(stays_inside)]


class ModelConfig(Config):
    """The foundation model that the adapter is trained on."""

    name: str = Field(DEMO_MODEL, min_length=1, description="Hub id or local folder of the foundation model.")
    revision: Revision = Field("main", min_length=1, description="Branch, tag or commit of a model on the Hub.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the frozen weights and of the trained head; bfloat16 is slow on most CPUs.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model. Leave off unless you trust its authors.",
    )


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
    label_column: str = Field("label", min_length=1, description="Column that holds the class.")
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
    max_length: int = Field(128, ge=4, le=131_072, description="Tokens kept of each text; the rest is cut off.")
    max_train_rows: int | None = Field(
        None, ge=2, le=10**9, description="Use at most this many training rows, drawn stratified by class. None: all."
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

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = (*self.text_columns, self.label_column)
        if len(set(columns)) < len(columns):
            raise ValueError(f"text_columns and label_column must be different columns, not {', '.join(columns)}")
        if taken := sorted(RESERVED_COLUMNS.intersection(self.text_columns)):
            raise ValueError(f"text_columns: the run needs the name '{taken[0]}' itself; rename that column")
        if self.label_column == "row":
            raise ValueError("label_column: the run needs the name 'row' itself; rename that column")
        return self


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


class TrainingConfig(Config):
    """How the adapter is trained."""

    epochs: int = Field(3, ge=1, le=10_000, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None, ge=1, le=10**9, description="Stop after this many optimizer steps. None: no limit."
    )
    batch_size: int = Field(32, ge=1, le=65_536, description="Rows in one forward pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65_536, description="Forward passes that make one optimizer step."
    )
    learning_rate: float | None = Field(
        None,
        ge=0,
        le=10,
        description=f"Highest learning rate. None: that of the method, {MATRICES_RATE} for lora and most others, "
        f"{FEW_RATE} for those that train few numbers, as ia3 and vera do; {DEMO_RATE} for the embedded demo's model.",
    )
    warmup_fraction: float = Field(0.06, ge=0, le=1, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW weight decay.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = Field(
        "linear", description="Course of the learning rate after the warm-up."
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=10_000, description="Stop after this many epochs without a better validation score. 0: never."
    )
    selection_metric: Literal["accuracy", "macro_f1", "log_loss"] = Field(
        "accuracy", description="Validation score that chooses the best checkpoint."
    )
    max_trunk_gb: float = Field(
        20,
        gt=0,
        le=1e6,
        description="With adapter.layers: the most disk space, in GB, for what the blocks below have computed.",
    )


class EvaluationConfig(Config):
    """How foundation model and adapter are measured and compared."""

    batch_size: int = Field(64, ge=1, le=65_536, description="Most rows in one forward pass.")
    references: tuple[ReferenceName, ...] = Field(
        get_args(ReferenceName),
        description="What else is measured on the same test rows: the majority class, TF-IDF with logistic regression, "
        "a linear probe on the frozen model, and the champion of tracking.registered_model where there is one.",
    )
    bootstrap_samples: int = Field(
        2000, ge=200, le=1_000_000, description="Resamplings of the test rows behind each interval."
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="Confidence of the intervals and of the verdict.")


def check_tag(tag: str) -> str:
    """`tag`, whose name MLflow takes; ValueError where it would refuse it, after the run has begun."""
    name, equals, _ = tag.partition("=")
    if not equals:
        raise ValueError(f"must be name=value, not '{tag}'")
    if not re.fullmatch(r"[\w.\-: /]{1,250}", name) or {"", ".", ".."}.intersection(name.split("/")):
        raise ValueError(f"'{name}' is not a name for a tag; use letters, digits and _ . - : in it")
    return tag


def check_not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("must be a name that can be read, not only spaces")
    return name


def check_model_name(name: str) -> str:
    """`name`, by which MLflow and every command find the model again; ValueError for another."""
    if wrong := [letter for letter in name if letter in '/:?@"']:
        raise ValueError(f"must be a name without {wrong[0]}, not {name!r:.80}")
    if name != name.strip() or name[0] in ".~-\\":
        raise ValueError(f"must begin with a letter or digit and not end with a space, not {name!r:.80}")
    if re.fullmatch("(m-)?[0-9a-f]{32}", name):
        raise ValueError(f"must not look like the id of a run or logged model, as {name!r} does")
    if name.endswith(DATA_FILES):
        raise ValueError(f"must not look like a file, as {name!r:.80} does")
    return name


Name = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(check_not_blank)]


ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(check_model_name)]


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


class RunConfig(Config):
    """Everything one fine-tuning run is told."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random choice of the run.")
    offline: bool = Field(False, description="Use only what is already on this machine; do not ask the Hub.")

    @model_validator(mode="after")
    def _names_its_learning_rate(self) -> Self:
        """Whoever reads, shows or records a run's configuration finds the rate that it really has."""
        if self.training.learning_rate is None:
            training = self.training.model_copy(update={"learning_rate": self.usual_rate()})
            object.__setattr__(self, "training", training)  # frozen it is for everybody else
        return self

    def run_config(self) -> "RunConfig":
        """The plain run, without what only retraining or several seeds are told."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})

    def usual_rate(self) -> float:
        """The learning rate where the user names none."""
        return DEMO_RATE if self.model.name == DEMO_MODEL else METHODS[self.adapter.method].rate

    def run_name(self) -> str:
        """What the run does, in words: `gpt2 · rotten_tomatoes · lora r8 · lr 0.001 · seed 1`.

        Learning rate and seed are named where they are not the defaults: they are what people vary most, and MLflow
        tells runs apart by name only.
        """
        rank = f" r{self.adapter.r}" if METHODS[self.adapter.method].r else ""
        data = Path(self.data.name)
        while data_kind(data):  # reviews.csv.gz
            data = data.with_suffix("")
        top = f" top {self.adapter.layers}" if self.adapter.layers else ""
        names = [Path(self.model.name).name, data.name, self.adapter.method + rank + top]
        if self.training.learning_rate != self.usual_rate():
            names.append(f"lr {self.training.learning_rate:g}")
        if self.seed:
            names.append(f"seed {self.seed}")
        return self.tracking.run_name or " · ".join(names)

    def name_of(self, part: str) -> str:
        """Name of what is one of several seeds, or all of them: `part` stands in place of the configuration's seed."""
        return f"{self.model_copy(update={'seed': 0}).run_name()[:220]} · {part}"  # MLflow allows 250 characters


class GateConfig(Config):
    """What a challenger must show before it takes the champion's place. A tie keeps the champion."""

    smallest_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Accuracy that the challenger must gain at least: the whole interval must lie above it.",
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="Confidence of the gate's intervals and tests.")
    no_worse_slice: bool = Field(
        True, description="Keep the champion if the challenger is significantly worse on any slice of the rows."
    )
    max_latency_ms: float | None = Field(
        None, gt=0, le=1e9, description="Most milliseconds to answer one text, median of 20. None: no ceiling."
    )
    max_memory_mb: float | None = Field(
        None, gt=0, le=1e9, description="Most memory, in MiB, of a process that answers. None: no ceiling."
    )
    approval: bool = Field(
        False, description="Pause in the Prefect UI with the comparison, and promote only when somebody resumes it."
    )
    approval_hours: float = Field(
        72, gt=0, le=8760, description="Hours that the pause waits for an answer; then the champion stays."
    )


class RetrainConfig(RunConfig):
    """Everything `retrain` is told: a run, and what its adapter must show to be promoted."""

    command: ClassVar[str] = "retrain"

    tracking: TrackingConfig = Field(
        TrackingConfig(registered_model="peft-flow"),
        description="Where and how the runs appear in MLflow, and the registered model that is retrained.",
    )
    gate: GateConfig = GateConfig()
    refresh_test: bool = Field(
        False, description="Draw a new test set from the data as they are now; else the champion's stays frozen."
    )
    force: bool = Field(False, description="Train and promote whatever the gate says; this is recorded.")

    @model_validator(mode="after")
    def _has_a_registered_model(self) -> Self:
        if not self.tracking.registered_model:
            raise ValueError("tracking.registered_model must name the model that is retrained")
        return self


class SeedsConfig(RunConfig):
    """Everything `finetune` is told for several seeds."""

    seeds: int = Field(3, ge=2, le=MOST_SEEDS, description="Train once for each of this many seeds, from `seed` on.")


class RerunConfig(Config):
    """Everything `rerun` is told."""

    command: ClassVar[str] = "rerun"

    run_id: str = Field(min_length=1, max_length=100, description="Id of the run in MLflow, as its page shows it.")
    anyway: bool = Field(False, description="Go on even if its data set or model has changed, with what is there now.")


class PredictionConfig(Config):
    """Everything `predict` is told."""

    command: ClassVar[str] = "predict"

    model: str = Field(
        min_length=1,
        description="Registered model (NAME@ALIAS or NAME/3, also after models:/; NAME is NAME@champion), id of an "
        "MLflow run, or local adapter folder.",
    )
    input: str = Field(
        min_length=1,
        description="File (csv, tsv, json, jsonl, parquet, xlsx or arrow, also packed), local folder or Hub data set. "
        "On the command line also - for standard input: JSON objects or plain texts, one a line. What comes from there "
        "cannot be resumed after a kill.",
    )
    output: str = Field(
        min_length=1,
        description="File to write, csv, jsonl or parquet by its name. On the command line also - for jsonl on "
        "standard output, which cannot be resumed either.",
    )
    split: str | None = Field(None, min_length=1, description="Split of a data set or folder. None: its only one.")
    config: str | None = Field(
        None, description="Configuration (subset) of a Hub data set that has several. None: its only one."
    )
    revision: Revision = Field("main", min_length=1, description="Branch, tag or commit of a data set on the Hub.")
    text_columns: tuple[str, ...] = Field(
        (),
        max_length=2,
        description="Columns of the input that hold the texts. Empty: the names of the training columns.",
    )
    abstain_below: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Give no label to a row whose most probable class has less than this probability.",
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="Most rows in one forward pass.")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="What to do about a row that cannot be read or has no text: stop, or skip it and set it aside in "
        "OUTPUT.rejected.jsonl.",
    )
    overwrite: bool = Field(False, description="Replace an existing output file that is of something else.")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the foundation model. Leave off unless you trust its authors.",
    )
    offline: bool = Field(False, description="Use only what is already on this machine; do not ask the Hub.")

    def run_name(self) -> str:
        """What is predicted by what: `reviews@champion · july.csv`."""
        source = "standard input" if self.input == "-" else Path(self.input).name
        model = self.model.removeprefix("models:/")
        is_version = re.fullmatch(r"[^/]+/\d+", model) or "@" in model
        return f"{model if is_version else Path(model).name} · {source}"
