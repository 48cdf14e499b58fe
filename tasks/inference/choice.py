"""Labels chosen otherwise than by the highest probability: from a threshold on, or as a set that holds the true one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.records import Record
from tasks.models import serving
from tasks.scores.conformal import prediction_sets, surprise_of
from tasks.scores.thresholds import Threshold, threshold_for
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean

if TYPE_CHECKING:
    import numpy as np


class Choice(Record):
    thresholds: dict[str, float] = {}  # noqa: RUF012  (frozen)
    """By label: it is given from this probability on."""
    surprise: float | None = None
    """One minus the probability of a class in a row's set is at most this."""
    told: tuple[str, ...] = ()
    """What was chosen on validation, in sentences."""


def choice_of(config: PredictionConfig, adapter: Path, settings: dict[str, Any]) -> Choice:
    """What `threshold` and `coverage` ask for; InputError where this model cannot give it."""
    columns = serving.answer_columns(settings)
    if config.threshold and "prediction" in columns:
        raise InputError(f"threshold: {config.model} predicts a number, not labels; leave threshold out")
    if config.coverage and "probability" not in columns:
        raise InputError(f"coverage: {config.model} does not choose one class; leave coverage out")
    thresholds, told = {}, []
    for asked in config.threshold:
        name, value = (part.strip() for part in asked.rsplit("=", 1))
        if name not in settings["label_names"]:
            known = did_you_mean(name, settings["label_names"])
            raise InputError(f"threshold: {config.model} has no label '{name}'; {known}")
        kind, _, number = value.rpartition(" ")
        if not kind:
            thresholds[name] = float(value)
            continue
        found = chosen(config, adapter, settings, name, float(number), kind == "precision")
        thresholds[name] = found.value
        told.append(
            f"{name} is given from a probability of {found.value:.4g} on: on the validation rows its precision is "
            f"{found.precision:.3f} and its recall {found.recall:.3f}"
        )
    return Choice(thresholds=thresholds, surprise=surprise(config, adapter, settings), told=tuple(told))


def chosen(
    config: PredictionConfig, adapter: Path, settings: dict[str, Any], name: str, wanted: float, precision: bool
) -> Threshold:
    """The threshold of a label with at least this precision, or recall, on the validation rows."""
    table, labels = validation_rows(config, adapter, settings)
    place = settings["label_names"].index(name)
    truth = labels[:, place] if labels.ndim == 2 else labels == place
    if not truth.any():
        raise InputError(f"threshold: no validation row has the label '{name}'; give the threshold itself, {name}=0.8")
    found = threshold_for(table[:, place], truth, wanted, precision)
    if not found:
        kind = "precision" if precision else "recall"
        raise InputError(f"threshold: none gives '{name}' a {kind} of {wanted:g} on the validation rows; ask for less")
    return found


def surprise(config: PredictionConfig, adapter: Path, settings: dict[str, Any]) -> float | None:
    if not config.coverage:
        return None
    table, labels = validation_rows(config, adapter, settings)
    found = surprise_of(table, labels, config.coverage)
    if found is None:
        raise InputError(
            f"coverage: {len(labels)} validation rows are too few to say what holds in {100 * config.coverage:g} % of "
            "the cases; ask for less"
        )
    return found


def validation_rows(
    config: PredictionConfig, adapter: Path, settings: dict[str, Any]
) -> "tuple[np.ndarray, np.ndarray]":
    """The adapter's answers for the rows of its validation split, and their labels."""
    from safetensors.torch import load_file

    file = adapter / serving.VALIDATION
    if not file.is_file():
        raise InputError(
            f"model: {config.model} has no {serving.VALIDATION}, as adapters trained before; give thresholds as numbers"
        )
    kept = load_file(file)
    return serving.answers(kept["logits"], settings), kept["labels"].numpy()


def apply(choice: Choice, names: list[str], table: "np.ndarray") -> dict[str, list[Any]]:
    """`label`, `probability` and `set` of rows with these probabilities, (rows, classes), as far as they are chosen."""
    import numpy as np

    columns: dict[str, list[Any]] = {}
    if choice.thresholds:
        least = np.asarray([choice.thresholds.get(name, np.inf) for name in names])
        reached = np.where(table >= least, table, -1)
        others = np.where(np.isinf(least), table, -1)
        places = np.where(reached.max(1) >= 0, reached.argmax(1), others.argmax(1))
        known = np.isinf(least).any() | (reached.max(1) >= 0)  # where each class has a threshold none may be reached
        columns["label"] = [names[place] if given else None for place, given in zip(places, known, strict=True)]
        columns["probability"] = table[np.arange(len(table)), places].tolist()
    if choice.surprise is not None:
        sets = prediction_sets(table, choice.surprise)
        columns["set"] = [[name for name, yes in zip(names, row, strict=True) if yes] for row in sets]
    return columns
