"""Made-up sweeps, for tests of what is said about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.base.records import Difference, Interval
from tasks.base.sweeps import Outcome, SweepResult, Trial
from tasks.scores.objective import objective
from tasks.studies.trials import packed

ROWS = 200


def labels_of(task: str, rows: int = ROWS) -> np.ndarray:
    return np.linspace(-2, 2, rows) if task == "regression" else np.arange(rows) % 2


def answers_of(task: str, right: float, seed: int = 0, rows: int = ROWS) -> np.ndarray:
    """Of classes: the share `right` of the rows is; of numbers: off by 1 - `right` on average."""
    generator, labels = np.random.default_rng(seed), labels_of(task, rows)
    if task == "regression":
        off = generator.standard_normal(rows)
        return (labels + (1 - right) * off / abs(off).mean())[:, None]
    wrong = generator.permutation(rows) >= round(right * rows)
    return np.asarray(np.eye(2)[np.where(wrong, 1 - labels, labels)] * 0.8 + 0.1)


def finished(
    number: int, values: dict[str, Any], right: float = 0.8, task: str = "single_label", **costs: float
) -> Trial:
    """Its costs are under the names `parameters`, `seconds` and `mb`."""
    table = answers_of(task, right, number)
    names = {"parameters": "adapter/trainable_parameters", "seconds": "cost/train_seconds", "mb": "cost/adapter_mb"}
    first = objective(task).metrics[0].name
    outcome = Outcome(
        state="finished",
        score=objective(task).scores(table, labels_of(task))[first],
        metrics={names[name]: value for name, value in costs.items()},
        answers=packed(table),
    )
    return Trial(number=number, values=values, outcome=outcome, started=0, ended=41_000, losses={1: 0.7, 2: 0.6})


def ended(number: int, values: dict[str, Any], state: Any, reason: str = "") -> Trial:
    outcome = Outcome(state=state, reason=reason)
    return Trial(number=number, values=values, outcome=outcome, started=0, ended=9000, losses={1: 0.9})


def sweep(trials: Sequence[Trial], task: str = "single_label", **changes: Any) -> SweepResult:
    metric = objective(task).metrics[0]
    scored = [trial for trial in trials if trial.outcome.score is not None]
    best = max(scored, key=lambda trial: metric.sign * (trial.outcome.score or 0))
    naive = best.outcome.score or 0
    given: dict[str, Any] = {
        "run_id": "a" * 32,
        "experiment": "peft-flow",
        "status": "finished",
        "verdict": "no evidence that tuning helped",
        "task": task,
        "metric": metric.name,
        "confidence": 0.95,
        "fields": tuple(dict.fromkeys(name for trial in trials for name in trial.values)),
        "trials": tuple(trials),
        "best": best.number,
        "validation_rows": ROWS,
        "picked_on": ROWS,
        "naive": naive,
        "corrected": Interval(value=0.781, low=0.752, high=0.811),
        "best_run": "b" * 32,
        "given_run": "c" * 32,
        "test_rows": 500,
        "best_test": Interval(value=0.774, low=0.741, high=0.805),
        "given_test": Interval(value=0.766, low=0.733, high=0.797),
        "gain": difference(metric.name, 0.008),
        "data_fingerprint": "f" * 64,
        "seconds": 600.0,
    }
    return SweepResult(**(given | changes))


def difference(metric: str, value: float, verdict: Any = "no evidence", p_value: float = 0.481) -> Difference:
    gain = Interval(value=value, low=value - 0.012, high=value + 0.014)
    return Difference(verdict=verdict, scores={metric: gain}, p_value=p_value, fixed=20, broken=16)
