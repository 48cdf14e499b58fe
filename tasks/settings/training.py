"""How an adapter is trained: a section of a configuration."""

import json
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.settings.fields import Config, parsed_weights
from tasks.settings.fixed import DEMO_RATE
from tasks.settings.methods import FEW_RATE, MATRICES_RATE

MetricName = Literal[
    "accuracy", "macro_f1", "log_loss", "micro_f1", "exact_match", "hamming_loss", "average_precision", "mae", "rmse",
    "r2", "spearman", "quadratic_kappa",
]  # fmt: skip
"""Those of tasks/scores/objectives, spelled out because the form and the type checker need literals."""


MOST_PROCESSES = 1_024


class TrainingConfig(Config):
    """How the adapter is trained."""

    epochs: int = Field(3, ge=1, le=10_000, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None, ge=1, le=10**9, description="Stop after this many optimizer steps. None: no limit."
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=65_536,
        description="Rows in one batch. Long ones go through the model in pieces: the same step in less memory.",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536, description="Batches that make one optimizer step.")
    processes: str = Field(
        "1",
        description="Processes that train together, each on its part of every batch; batch_size is the rows of all. "
        "auto: one for each GPU, as many as batch_size can be divided by; one on each machine without a GPU.",
    )
    machines: int = Field(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="Machines that these processes run on, as many on each: this one, and others on which "
        "`peft-flow join` is given the address of rendezvous.",
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT of this machine where other machines join the training. Whoever can reach it may: give "
        "it in a network that you trust.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only what enters each block of the model, and compute the rest again for the gradients: "
        "the same adapter in much less memory, a quarter to a half slower.",
    )
    shard_model: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Have each of several processes keep its part of the frozen weights alone (FSDP2): the same "
        "numbers, slower, in a fraction of the memory. auto: where the weights do not fit on one GPU.",
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
    class_weights: str = Field(
        "none",
        description="What each class counts in the loss. none: each row the same; balanced: each class the same, "
        "however rare; or weights by name, for example {spam: 5}, the others 1. Where a text has several labels, what "
        "the rows that have the label count.",
    )
    focal_gamma: float = Field(
        0,
        ge=0,
        le=10,
        description="Focal loss: what the model is sure of counts less, by one minus its probability to this power. "
        "2 is usual; 0: off.",
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=10_000, description="Stop after this many epochs without a better validation score. 0: never."
    )
    selection_metric: MetricName | None = Field(
        None,
        description="Validation score that chooses the best checkpoint. None: accuracy; micro_f1 where a text has "
        "several labels; mae for a number.",
    )
    max_trunk_gb: float = Field(
        20,
        gt=0,
        le=1e6,
        description="With adapter.layers: the most disk space, in GB, for what the blocks below have computed.",
    )

    @field_validator("processes", mode="before")
    @classmethod
    def _is_a_number_or_auto(cls, value: object) -> str:
        """Text, as Prefect's form knows no field of two kinds."""
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if text != "auto" and not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MOST_PROCESSES):
            raise ValueError(f"must be a whole number from 1 to {MOST_PROCESSES:,}, or auto, not {value!r:.80}")
        return text

    @field_validator("rendezvous")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            host_and_port(value)
        return value

    @model_validator(mode="after")
    def _divides_its_batches(self) -> Self:
        if self.processes != "auto" and (rest := self.batch_size % int(self.processes)):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided over {self.processes} processes; "
                f"try {self.batch_size + int(self.processes) - rest}"
            )
        return self

    @model_validator(mode="after")
    def _divides_its_processes(self) -> Self:
        if self.machines == 1:
            if self.rendezvous is not None:
                raise ValueError("rendezvous is where other machines join; say with machines how many there are")
            return self
        if self.rendezvous is None:
            raise ValueError(
                f"machines {self.machines} need rendezvous, an address of this machine where the others join, "
                "for example 10.0.0.1:29400"
            )
        if self.processes == "auto":
            whole, what = self.batch_size, "batch_size"
        else:
            whole, what = int(self.processes), "processes"
        if rest := whole % self.machines:
            raise ValueError(
                f"{what} {whole} cannot be divided over {self.machines} machines; try {whole + self.machines - rest}"
            )
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """A mapping becomes text, which every form and table can hold; nothing is none."""
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "none" if value is None else value

    @field_validator("class_weights")
    @classmethod
    def _are_weights(cls, value: str) -> str:
        if value not in ("none", "balanced"):
            parsed_weights(value)
        return value

    def weights(self) -> Literal["none", "balanced"] | dict[str, float]:
        """By class, where `class_weights` names some."""
        words: dict[str, Literal["none", "balanced"]] = {"none": "none", "balanced": "balanced"}
        return words.get(self.class_weights) or parsed_weights(self.class_weights)


def host_and_port(address: str) -> tuple[str, int]:
    """Of `HOST:PORT`; ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and len(port) < 6 and 1 <= int(port) < 2**16):
        raise ValueError(f"must be HOST:PORT, for example 10.0.0.1:29400, not {address!r:.80}")
    return host.strip("[]"), int(port)
