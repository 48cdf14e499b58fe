"""What a run may be told: one frozen model, the same in YAML, on the command line, in the Prefect form and in Python.

Descriptions and bounds here are the command line's help and the form's labels; defaults are the embedded demo's.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from tasks.settings.fields import (
    BatchSize,
    Config,
    DataRevision,
    Name,
    Offline,
    Split,
    Subset,
    TrustRemoteCode,
)
from tasks.settings.fixed import DEMO_MODEL, DEMO_RATE, MOST_SEEDS, data_kind
from tasks.settings.methods import METHODS
from tasks.settings.sections import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrackingConfig,
)
from tasks.settings.training import TrainingConfig


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


class LearningCurveConfig(RunConfig):
    """Everything `learning-curve` is told: a run, and how often it is done with each number of training rows."""

    command: ClassVar[str] = "learning-curve"

    seeds: int = Field(
        3,
        ge=2,
        le=MOST_SEEDS,
        description="Train once for each of this many seeds, from `seed` on, with each number of training rows.",
    )


def check_budget(asked: str) -> str:
    """`asked`, which says a length of time; ValueError for what cannot be understood."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", asked.strip())) or not float(found[1]):
        raise ValueError(f"must be a time such as 90s, 45min or 2h, not '{asked}'")
    return asked


def check_storage(asked: str) -> str:
    """`asked`, which is the address of a database; ValueError for one of no use."""
    kind, separator, _ = asked.partition("://")
    if not separator or kind not in ("sqlite", "postgresql"):
        raise ValueError(f"must be an address such as postgresql://host/database, not '{asked:.80}'")
    return asked


class SweepConfig(RunConfig):
    """Everything `sweep` is told: a run, what varies in it, and for how long better values are looked for."""

    command: ClassVar[str] = "sweep"

    space: dict[str, Any] = Field(
        description="What varies: fields by section, each with a list of choices, or low and high with log or step, "
        'for example {"training": {"learning_rate": {"low": 0.0001, "high": 0.01, "log": true}}}. when, in a field, '
        "names the values of another with which it varies.",
    )
    trials: int | None = Field(
        None,
        ge=2,
        le=10_000,
        description="Trials, the first with the configuration as given. None: 20, or all of a grid.",
    )
    parallel: int = Field(1, ge=1, le=256, description="Trials at the same time, each in a process of its own.")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="How values are chosen: by what was good so far, at random, or all combinations."
    )
    pruner: Literal["median", "halving", "none"] = Field(
        "median",
        description="Which trials end early by their validation loss after an epoch: those worse than the median, "
        "those that successive halving drops, or none.",
    )
    budget: Annotated[str, AfterValidator(check_budget)] | None = Field(
        None, description="No trial begins after this time, for example 90s, 45min or 2h. None: without end."
    )
    storage: Annotated[str, AfterValidator(check_storage)] | None = Field(
        None,
        description="Database that all machines reach, where trials run on several: postgresql://host/database; user "
        "and password in PGUSER and PGPASSWORD, on each machine. None: that of peft-flow up --database, or a file in "
        "mlruns/.",
    )

    @field_validator("pruner", mode="before")
    @classmethod
    def _as_word(cls, value: object) -> object:
        """On the command line `none` is no value at all."""
        return "none" if value is None else value

    @property
    def budget_seconds(self) -> float:
        """Infinite where there is no budget."""
        if self.budget is None:
            return math.inf
        unit = {"s": 1, "min": 60, "h": 3600}
        number, kind = re.findall(r"[\d.]+|[a-z]+", self.budget)
        return float(number) * unit[kind]


class RerunConfig(Config):
    """Everything `rerun` is told."""

    command: ClassVar[str] = "rerun"

    run_id: str = Field(
        min_length=1,
        max_length=250,
        description="A run in MLflow: its id or the first digits of it, its name, or `latest`.",
    )
    anyway: bool = Field(False, description="Go on even if its data set or model has changed, with what is there now.")


def check_threshold(asked: str) -> str:
    """`asked`, which says a label and from where on it is given; ValueError for what cannot be understood."""
    name, equals, value = asked.rpartition("=")
    kind, _, number = value.strip().rpartition(" ")
    try:
        fits = 0 <= float(number) <= 1
    except ValueError:
        fits = False
    if not (name.strip() and equals and kind.strip() in ("", "precision", "recall") and fits):
        raise ValueError(f"must be like spam=0.8, spam=precision 0.95 or spam=recall 0.9, not '{asked}'")
    return asked


class PredictionConfig(Config):
    """Everything `predict` is told."""

    command: ClassVar[str] = "predict"

    model: str = Field(
        min_length=1,
        description="Registered model (NAME@ALIAS or NAME/3, also after models:/; NAME is NAME@champion), a run in "
        "MLflow (its id or the first digits of it, its name, or `latest`), or local adapter folder.",
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
    split: Split = None
    config: Subset = None
    revision: DataRevision = "main"
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
    threshold: tuple[Annotated[str, AfterValidator(check_threshold)], ...] = Field(
        (),
        description="From which probability on a label is given, for example spam=0.8; or chosen on the validation "
        "rows for at least a precision or recall there: spam=precision 0.95, spam=recall 0.9. Other classes are chosen "
        "as always, among themselves.",
    )
    coverage: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="Give each row a set of classes, too, that holds the true one this often (split conformal "
        "prediction from the validation rows), in the column `set`: 0.9 is usual. None: no sets.",
    )
    batch_size: BatchSize = 64
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="What to do about a row that cannot be read or has no text: stop, or skip it and set it aside in "
        "OUTPUT.rejected.jsonl.",
    )
    shards: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that share the rows: with a server as deployment runs wherever there are workers, else "
        "on this machine. The output has the same bytes. Each takes about 15 s to start and reads the rows up to its "
        "own: worth it where one process would take many minutes, and there are several GPUs or machines.",
    )
    overwrite: bool = Field(False, description="Replace an existing output file that is of something else.")
    trust_remote_code: TrustRemoteCode = False
    offline: Offline = False

    def run_name(self) -> str:
        """What is predicted by what: `reviews@champion · july.csv`."""
        source = "standard input" if self.input == "-" else Path(self.input).name
        model = self.model.removeprefix("models:/")
        is_version = re.fullmatch(r"[^/]+/\d+", model) or "@" in model
        return f"{model if is_version else Path(model).name} · {source}"


class MonitorConfig(Config):
    """Everything `monitor` is told."""

    command: ClassVar[str] = "monitor"

    name: str = Field(
        min_length=1,
        max_length=200,
        description="Registered model: its champion is watched. NAME/3 is for another version, NAME@ALIAS too.",
    )
    inputs: str = Field(
        min_length=1,
        description="What the model was asked lately: file (csv, tsv, json, jsonl, parquet, xlsx or arrow, also "
        "packed), local folder or Hub data set. Rows that predict wrote hold its answers; the others are labelled.",
    )
    split: Split = None
    config: Subset = None
    revision: DataRevision = "main"
    text_columns: tuple[str, ...] = Field(
        (),
        max_length=2,
        description="Columns of the inputs that hold the texts. Empty: the names of the training columns.",
    )
    label_columns: tuple[str, ...] = Field(
        (),
        max_length=1_000,
        description="Columns of the inputs with the true label, where it came back: a row may have none. Empty: the "
        "names of the training columns, where the inputs have them and predict has not written them.",
    )
    abstain_below: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Rows whose most probable class has less than this probability count as abstentions, as for "
        "predict. 0: those whose set of classes, which holds the true one in 90 % of cases, has more than one.",
    )
    max_rows: int = Field(
        1_000,
        ge=30,
        le=5_000,
        description="Most rows that are examined, drawn at random from all: a difference that so many do not show is "
        "small.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="Without drift at most 1 - confidence of all monitorings find some, all their tests together.",
    )
    batch_size: BatchSize = 64
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of what is drawn: rows and permutations.")
    experiment: Name = Field("peft-flow", description="MLflow experiment that the run belongs to.")
    trust_remote_code: TrustRemoteCode = False
    offline: Offline = False

    @property
    def tracking(self) -> TrackingConfig:
        return TrackingConfig(experiment=self.experiment)

    @property
    def prediction(self) -> PredictionConfig:
        """What `predict` would be told to label these rows."""
        shared = PredictionConfig.model_fields.keys() & MonitorConfig.model_fields.keys()
        given = {field: getattr(self, field) for field in shared}
        model = f"models:/{self.name.removeprefix('models:/')}"  # a folder may be called so too
        return PredictionConfig(model=model, input=self.inputs, output="-", **given)

    def run_name(self) -> str:
        """What is watched on what: `monitor reviews · july.csv`."""
        return f"monitor {self.name} · {Path(self.inputs).name}"[:250]
