"""The rules by which a challenger takes the champion's place."""

from typing import Any

import numpy as np
import pytest

from tasks.base.outcomes import Footprint, Gate
from tasks.base.records import Comparison, Difference, Interval, Rung
from tasks.retraining.gate import NewClasses, Trial, against_champion, page, without_champion
from tasks.settings.config import GateConfig

ROWS, CLASSES, SAMPLES = 400, 2, 500


def answers(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes) of a classifier that has the rows of the mask `right` right."""
    said = np.where(right, labels, 1 - labels)
    return np.where(np.arange(CLASSES) == said[:, None], 0.9, 0.1)


def trial(champion: np.ndarray, challenger: np.ndarray, **more: Any) -> Trial:
    labels = np.arange(len(champion)) % CLASSES
    return Trial("single_label", labels, answers(labels, champion), answers(labels, challenger), **more)


def first(rows: int, count: int = ROWS) -> np.ndarray:
    """Mask of the first `rows` of `count`."""
    return np.arange(count) < rows


def judged(given: Trial, own: Trial | None = None, footprint: Footprint | None = None, **rules: Any) -> Gate:
    return against_champion(GateConfig(**rules), given, own, footprint, SAMPLES, seed=0)


def failed(gate: Gate) -> list[str]:
    return [finding.rule for finding in gate.findings if not finding.passed]


def test_better_challenger_passes_and_its_gain_is_the_reason() -> None:
    gate = judged(trial(first(300), first(340)))
    assert gate.passed
    assert gate.reason.startswith("better than the champion: accuracy +0.100 (")
    assert gate.champion and gate.challenger
    assert (gate.champion.value, gate.challenger.value) == (0.75, 0.85)


def test_tie_keeps_the_champion() -> None:
    gate = judged(trial(first(300), first(300)))
    assert failed(gate) == ["gain"] and "not shown to be better than the champion" in gate.reason


def test_a_few_rows_more_are_no_reason() -> None:
    assert failed(judged(trial(first(300), first(303)))) == ["gain"]


def test_worse_challenger_is_called_worse() -> None:
    assert judged(trial(first(340), first(300))).reason.startswith("significantly worse than the champion: ")


def test_gain_below_the_smallest_asked_for_is_refused() -> None:
    given = trial(first(300), first(340))
    assert judged(given, smallest_gain=0.05).passed
    gate = judged(given, smallest_gain=0.08)
    assert failed(gate) == ["gain"] and "not shown to gain 0.08" in gate.reason


def test_confidence_decides_how_much_must_be_shown() -> None:
    given = trial(first(300), first(309))
    assert judged(given, confidence=0.95).passed
    assert not judged(given, confidence=0.9999).passed


def test_slice_that_got_significantly_worse_stands_in_the_way_unless_allowed() -> None:
    champion, challenger = first(300), np.ones(ROWS, dtype=bool)
    champion[:40], challenger[:40] = True, False
    slices = [("short", first(40)), ("long", ~first(40))]
    given = trial(champion, challenger, slices=slices)
    gate = judged(given)
    assert failed(gate) == ["slices"]
    assert gate.reason == "significantly worse on the slice short (40 rows, 0 fixed, 40 broken, p < 0.001)"
    assert judged(given, no_worse_slice=False).passed


def test_slice_is_judged_more_strictly_the_more_there_are() -> None:
    champion, challenger = first(300), np.ones(ROWS, dtype=bool)
    champion[:7], challenger[:7] = True, False  # p = 0.016 there
    one = [("short", first(7))]
    assert failed(judged(trial(champion, challenger, slices=one))) == ["slices"]
    assert judged(trial(champion, challenger, slices=[*one, *[("all", first(ROWS))] * 9])).passed


def test_challenger_must_not_be_worse_on_the_champions_own_rows() -> None:
    given = trial(first(300), first(340))
    gate = judged(given, own=trial(first(340), first(300)))
    assert failed(gate) == ["champion's rows"] and "worse there" in gate.reason
    assert judged(given, own=trial(first(300), first(300))).passed


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, []),
        ({"max_latency_ms": 20.0}, []),
        ({"max_latency_ms": 9.0}, ["latency"]),
        ({"max_memory_mb": 500.0}, ["memory"]),
        ({"max_latency_ms": 9.0, "max_memory_mb": 500.0}, ["latency", "memory"]),
    ],
)
def test_ceilings_are_kept(rules: dict[str, float], expected: list[str]) -> None:
    given = trial(first(300), first(340))
    assert failed(judged(given, footprint=Footprint(latency_ms=10, memory_mb=800), **rules)) == expected


def test_without_a_row_that_is_new_to_both_nothing_is_shown() -> None:
    nothing = np.zeros(0, dtype=bool)
    gate = judged(trial(nothing, nothing, left_out=12))
    assert failed(gate) == ["gain"] and "has learned from all 12" in gate.reason


@pytest.mark.parametrize("gates", [200, pytest.param(1_000, marks=pytest.mark.endurance)])
def test_equals_are_promoted_in_at_most_one_of_twenty_gates(gates: int) -> None:
    assert share_promoted(gates, 200, GateConfig(), gain=0.0) <= one_of_twenty(gates)


def test_gain_as_small_as_the_smallest_asked_for_is_promoted_in_at_most_one_of_twenty_gates() -> None:
    """The interval decides it: the paired test sees that the challenger is better, and half of these gains look
    larger than they are."""
    assert share_promoted(100, 400, GateConfig(), gain=0.1) > 0.5
    assert share_promoted(100, 400, GateConfig(smallest_gain=0.1), gain=0.1) <= one_of_twenty(100)


def share_promoted(gates: int, rows: int, rules: GateConfig, gain: float) -> float:
    """Of challengers that are better than the champion by `gain`."""
    chance, promoted = np.random.default_rng(0), 0
    for _ in range(gates):
        hard = 0.6 + (0.4 - gain) * chance.uniform(size=rows)  # for both: their errors go together, as in truth
        champion, challenger = (chance.uniform(size=rows) < hard + more for more in (0.0, gain))
        promoted += against_champion(rules, trial(champion, challenger), None, None, 300, seed=0).passed
    return promoted / gates


def one_of_twenty(gates: int) -> float:
    """With three standard deviations of sampling error."""
    return float(0.05 + 3 * (0.05 * 0.95 / gates) ** 0.5)


CAME = NewClasses(("late",), (), ("bad", "good"), 60, "promote it")
WENT = NewClasses((), ("odd", "so-so"), ("bad", "good"), 1, "promote it")


def with_classes(given: Trial, classes: NewClasses) -> Gate:
    return against_champion(GateConfig(), given, None, None, SAMPLES, 0, classes)


def test_new_class_stands_in_no_ones_way_where_the_others_got_better() -> None:
    gate = with_classes(trial(first(300), first(340)), CAME)
    assert gate.passed
    assert gate.findings[1].told == (
        "the class late came, which the champion does not know; compared on rows of bad, good alone: on 60 test rows "
        "of the others no comparison is possible"
    )
    assert "the class late came" in page("reviews", "Gate of reviews", gate)


def test_new_class_names_the_way_forward_where_the_others_are_as_before() -> None:
    gate = with_classes(trial(first(300), first(300)), CAME)
    assert failed(gate) == ["gain", "classes"] and gate.reason.endswith("is possible; promote it")


def test_giving_up_a_class_is_for_a_person_to_decide() -> None:
    gate = with_classes(trial(first(300), first(340)), WENT)
    assert failed(gate) == ["classes"]
    assert gate.reason.startswith(
        "the classes odd, so-so went, which the challenger does not know; compared on rows of"
    )
    assert "on 1 test row of" in gate.reason and gate.reason.endswith("promote it")


def test_no_row_of_a_class_that_both_know_is_reported() -> None:
    nothing = np.zeros(0, dtype=bool)
    gate = with_classes(trial(nothing, nothing), CAME)
    assert gate.reason.startswith("no test row is left to compare them on; the class late came")


def ladder(**gains: tuple[str, float]) -> Comparison:
    """A comparison with these references: the verdict of the adapter against each, and the low end of its gain."""

    def rung(name: str) -> Rung:
        share = Interval(value=0.9, low=0.88, high=0.92)
        verdict, low = gains.get(name, ("improved", 0.1))
        gain = Interval(value=low + 0.02, low=low, high=low + 0.04)
        lead = Difference.model_construct(verdict=verdict, scores={"accuracy": gain}, p_value=0.01)
        return Rung.model_construct(
            name=name,
            scores={"accuracy": share},
            adapter_gain=None if name == "tuned" else lead,
        )

    return Comparison.model_construct(rows=200, ladder=tuple(map(rung, ("tuned", "baseline", *gains))))


def test_first_model_must_beat_tfidf_and_the_probe() -> None:
    good, poor = ("improved", 0.02), ("no evidence", -0.01)
    assert without_champion(GateConfig(), ladder(tfidf=good, probe=good), None).passed
    assert failed(without_champion(GateConfig(), ladder(tfidf=poor, probe=good), None)) == [
        "better than TF-IDF + logistic regression"
    ]
    assert failed(without_champion(GateConfig(), ladder(tfidf=good, probe=poor), None)) == ["better than linear probe"]
    gate = without_champion(GateConfig(), ladder(tfidf=good), None)
    assert gate.reason == "linear probe was not measured"
    small = without_champion(GateConfig(smallest_gain=0.03), ladder(tfidf=good, probe=good), None)
    assert not small.passed and small.reason.startswith("not shown to gain 0.03 over TF-IDF + logistic regression: ")


def test_first_model_that_is_worse_than_a_reference_is_called_that() -> None:
    poor, worse = ("no evidence", -0.01), ("worse", -0.3)
    told = without_champion(GateConfig(), ladder(tfidf=poor, probe=worse), None).reason
    first, second = told.split("; ")
    assert first.startswith("not shown to be better than TF-IDF + logistic regression: ")
    assert second.startswith("significantly worse than linear probe: ")


def test_page_names_every_rule_and_both_accuracies() -> None:
    text = page("reviews", "Gate of reviews", judged(trial(first(300), first(340), slices=[("short", first(40))])))
    assert "# Gate of reviews" in text and "| challenger" in text and "0.850 (" in text
    assert "| slices" in text and "passed" in text
