"""Linear models of features, as the references learn them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


FOLDS = 3


def logistic(
    known: Any, labels: "np.ndarray", asked: Sequence[Any], classes: int, grid: Sequence[float], seed: int
) -> "list[np.ndarray]":
    """Probabilities (rows, classes) for each of `asked` by logistic regression; a class that no known row has gets 0.

    The penalty is the one of `grid` with the best cross-validated log loss, where each class has a row for each fold.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    present, counts = np.unique(labels, return_counts=True)
    tables = [np.zeros((rows.shape[0], classes)) for rows in asked]
    if len(present) == 1:  # of several labels one may be missing
        for table in tables:
            table[:, present[0]] = 1
        return tables
    model = LogisticRegression(max_iter=1000, random_state=seed)
    if counts.min() >= FOLDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": list(grid)}, scoring="neg_log_loss", cv=folds, n_jobs=1)
    with threadpool_limits(1):  # two threads wait for each other: 4 to 17 s on Rotten Tomatoes instead of 1.2
        model.fit(known, labels)
        for table, rows in zip(tables, asked, strict=True):
            table[:, model.classes_] = model.predict_proba(rows)
    return tables


def ridge(
    known: Any, labels: "np.ndarray", asked: Sequence[Any], grid: Sequence[float], seed: int
) -> "list[np.ndarray]":
    """Numbers (rows, 1) for each of `asked` by ridge regression, with the penalty of the least squared error in
    cross-validation; `grid` has its inverse."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold
    from threadpoolctl import threadpool_limits

    model = Ridge(alpha=1.0)
    if len(labels) >= FOLDS:
        folds = KFold(FOLDS, shuffle=True, random_state=seed)
        alphas = [1 / strength for strength in grid]
        model = GridSearchCV(model, {"alpha": alphas}, scoring="neg_mean_squared_error", cv=folds, n_jobs=1)
    with threadpool_limits(1):
        model.fit(known, labels)
        return [model.predict(rows)[:, None] for rows in asked]
