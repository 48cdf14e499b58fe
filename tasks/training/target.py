"""What is learned: the task, what it must know of the training labels, and the loss."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.records import PreparedData
from tasks.models import serving
from tasks.models.losses import mean_loss
from tasks.scores.objective import Metric, Objective, objective, selection_metric
from tasks.settings.config import RunConfig
from tasks.training.resume import Best

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Target(NamedTuple):
    task: Objective
    scaling: dict[str, Any]
    loss: "Callable[..., Tensor]"
    outputs: int
    metric: Metric
    """Of the validation rows: it chooses the best checkpoint."""

    def scores(self, logits: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        """Of the validation rows, as they are without calibration."""
        import numpy as np
        import torch

        fitted = self.task.fit(logits, labels, self.scaling, calibrated=False)
        settings = {"activation": self.task.activation, **fitted}
        return self.task.scores(serving.answers(torch.from_numpy(logits.astype(np.float64)), settings), labels)

    def fitted(self, best: Best) -> dict[str, Any]:
        """What makes answers of the logits of the finished adapter."""
        return self.task.fit(best.logits, best.labels, self.scaling)

    def provisional(self, best: Best) -> dict[str, Any]:
        """The same of an unfinished adapter: nothing is calibrated, and no validation row may have been seen yet."""
        import numpy as np

        nothing = np.zeros((0, self.outputs))
        logits, labels = (best.logits, best.labels) if best.step else (nothing, nothing)
        return self.task.fit(logits, labels, self.scaling, calibrated=False)


def target_of(config: RunConfig, data: PreparedData, labels: "np.ndarray") -> Target:
    """`labels` are those of the training rows."""
    task, training = objective(data.task), config.training
    scaling, weights = task.scaling(labels), task.weights(labels, data.label_names, training.weights())
    loss = mean_loss(task.loss, scaling | {"weights": weights, "gamma": training.focal_gamma})
    metric = selection_metric(task, training.selection_metric)
    return Target(task, scaling, loss, len(data.label_names), metric)
