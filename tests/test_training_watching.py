"""What of a training's log becomes a curve."""

from typing import get_args

import pytest

from tasks.settings.training import MetricName
from tasks.training.watching import curve_point


@pytest.mark.parametrize("name", ["loss", *get_args(MetricName)])
def test_every_score_of_every_task_has_a_curve_of_validation(name: str) -> None:
    point = curve_point({f"eval_{name}": 0.5, "eval_runtime": 3.0, "step": 7})
    assert point and point.step == 7 and point.metrics == {f"validation/{name}": 0.5}


def test_line_without_a_curve_is_none() -> None:
    assert curve_point({"eval_runtime": 3.0, "step": 7}) is None
