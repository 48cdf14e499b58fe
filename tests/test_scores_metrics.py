import numpy as np
import pytest

from tasks.scores.metrics import PROBABILITY_FLOOR, score


def random_case(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    table = rng.dirichlet(np.ones(classes), rows)
    return table, rng.integers(0, classes, rows)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (40, 2), (200, 5), (7, 20)])
def test_scores_are_those_of_scikit_learn(rows: int, classes: int) -> None:
    from sklearn import metrics

    table, labels = random_case(rows, classes)
    scores, names = score(table, labels), list(range(classes))
    assert scores["accuracy"] == metrics.accuracy_score(labels, table.argmax(1))
    assert scores["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, table.argmax(1), average="macro", labels=names, zero_division=0)
    )
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(labels, table, labels=names))


def test_log_loss_is_the_cross_entropy_of_the_logits() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    logits, labels = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 3
    # the cross-entropy of a certain label is the divergence of the prediction from it
    by_row = [entropy(np.eye(3)[label], row) for label, row in zip(labels, softmax(logits, 1), strict=True)]
    assert score(softmax(logits, 1), labels)["log_loss"] == pytest.approx(np.mean(by_row))


def test_four_rows_by_hand() -> None:
    table = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    scores = score(table, np.array([0, 1, 1, 0]))
    # class 0: precision 2/3, recall 1; class 1: precision 1, recall 1/2
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())


def test_a_class_never_predicted_and_never_met_counts_as_zero() -> None:
    table = np.tile([0.8, 0.2, 0.0], (4, 1))
    scores = score(table, np.array([0, 0, 1, 1]))
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)


def test_a_probability_of_zero_costs_much_but_not_everything() -> None:
    scores = score(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert scores["log_loss"] == pytest.approx(-np.log(PROBABILITY_FLOOR) / 2)
    assert np.isfinite(scores["log_loss"])


def test_certain_and_right_is_perfect() -> None:
    assert score(np.eye(3), np.arange(3)) == {"accuracy": 1.0, "macro_f1": 1.0, "log_loss": 0.0}


def test_float32_probabilities_score_as_float64() -> None:
    table, labels = random_case(50, 3)
    narrow = table.astype(np.float32)
    assert score(narrow, labels) == score(narrow.astype(np.float64), labels)


def test_one_call_leaves_nothing_for_the_next() -> None:
    table, labels = random_case(10, 2)
    first = score(table, labels)
    score(1 - table, labels)
    assert score(table, labels) == first
