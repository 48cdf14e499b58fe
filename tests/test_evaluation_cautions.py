"""What stands beside the verdict where the verdict alone would mislead."""

from typing import Any

import numpy as np
import pytest

from tasks.base.records import Interval
from tasks.evaluation.cautions import find_cautions
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import judge
from tests.conftest import Judged


def told(judged: Judged, **changes: Any) -> str:
    """The cautions of a comparison that has none but for these changes."""
    calm = judged.result.calibration | {"error_before": 0.05, "error_after": 0.04}
    result = judged.result.model_copy(update={"detectable": 0.05, "calibration": calm, **changes})
    return "; ".join(find_cautions(result, judged.data, judged.predictions))


def point(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def scored(judged: Judged, **scores: tuple[float, float]) -> Any:
    """The ladder with these accuracies and macro-F1s."""
    return tuple(
        rung.model_copy(
            update={"scores": {name: point(value) for name, value in zip(rung.scores, (*pair, 0.5), strict=True)}}
        )
        for rung in judged.result.ladder
        if (pair := scores.get(rung.name, (0.1, 0.05)))
    )


def test_there_is_nothing_to_say_of_a_sound_run(judged: Judged) -> None:
    assert told(judged) == ""


def test_class_that_is_never_predicted_is_named(judged: Judged) -> None:
    table = np.tile(np.float32([0.4, 0.6]), (240, 1))
    predictions = judged.predictions._replace(tables=judged.predictions.tables | {"tuned": table})
    result = judge(judged.config, judged.data, judged.check, predictions, judged.trained, judged.result.folder)  # type: ignore[arg-type]
    assert result.cautions[0] == "never predicts 'bad' (120 test rows)"
    assert not any("'good'" in caution for caution in result.cautions)


def test_class_without_a_test_row_is_not_missed(judged: Judged) -> None:
    data = judged.data.model_copy(update={"label_names": ("a", "b", "c")})
    labels = np.array([0, 0, 1])
    for said, expected in (([0, 0, 1], ""), ([0, 0, 0], "never predicts 'b' (1 test row)")):
        predictions = Predictions(np.arange(3), labels, {"tuned": np.eye(3)[said]})
        found = find_cautions(judged.result, data, predictions)
        assert "".join(caution for caution in found if "predicts" in caution) == expected


@pytest.mark.parametrize(
    ("tuned", "tfidf", "expected"),
    [
        ((0.9, 0.783), (0.88, 0.866), "macro-F1 falls from 0.866 (TF-IDF) to 0.783 while accuracy rises"),
        ((0.9, 0.7831), (0.88, 0.7833), ""),  # the same in three digits
        ((0.9, 0.9), (0.88, 0.866), ""),
        ((0.9, 0.783), (0.91, 0.866), ""),  # both are lower: the verdict says it
    ],
)
def test_macro_f1_that_falls_while_accuracy_rises_is_reported(
    tuned: tuple[float, float], tfidf: tuple[float, float], expected: str, judged: Judged
) -> None:
    assert told(judged, ladder=scored(judged, tuned=tuned, tfidf=tfidf)) == expected


def test_macro_f1_is_not_compared_with_an_untrained_head(judged: Judged) -> None:
    ladder = scored(judged, tuned=(0.287, 0.089), baseline=(0.211, 0.171), probe=(0.1, 0.08))
    assert told(judged, ladder=ladder) == ""
    assert told(judged, ladder=ladder, untrained_head=False).startswith("macro-F1 falls from 0.171 (foundation model)")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.02, 0.05, "the temperature made calibration worse on test: error 0.020 to 0.050"),
        (0.0501, 0.0503, ""),
        (0.05, 0.02, ""),
    ],
)
def test_calibration_that_got_worse_is_reported(before: float, after: float, expected: str, judged: Judged) -> None:
    update = {"error_before": before, "error_after": after}
    assert told(judged, calibration=judged.result.calibration | update) == expected


@pytest.mark.parametrize(
    ("detectable", "expected"),
    [
        (None, "240 test rows can show no difference"),
        (0.312, "240 test rows say little: only differences of 0.312 or more show"),
        (0.1, ""),
    ],
)
def test_test_set_that_is_too_small_is_reported(detectable: float | None, expected: str, judged: Judged) -> None:
    assert told(judged, detectable=detectable) == expected


def test_comparison_with_chance_alone_is_called_that(judged: Judged) -> None:
    guesses = tuple(rung for rung in judged.result.ladder if rung.name in ("tuned", "baseline", "majority"))
    assert "is compared with chance" in told(judged, ladder=guesses)
    assert told(judged, ladder=guesses, untrained_head=False) == ""
