"""The step that compares all classifiers on the same test rows, and leaves verdict, page and pictures on disk."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefect import task

from tasks.base.records import (
    Comparison,
    DataCheck,
    Evaluation,
    PreparedData,
    TrainedAdapter,
)
from tasks.base.work import RunFolder
from tasks.evaluation.predictions import paired_predictions
from tasks.evaluation.verdict import judge
from tasks.settings.config import RunConfig

if TYPE_CHECKING:
    pass


@task(name="compare", task_run_name="compare")
def compare(
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    work: str,
) -> Comparison:
    """The verdict, with its page and tables under `work/comparison` and its pictures under `work/plots`.

    `evaluations` holds `tuned`, `baseline`, and the references by name.
    """
    from tasks.evaluation import plots
    from tasks.evaluation.report import write_report

    run = RunFolder(work)
    predictions = paired_predictions({name: evaluation.predictions for name, evaluation in evaluations.items()})
    result = judge(config, data, check, predictions, trained, run.comparison)
    write_report(config, data, predictions, trained, result)
    plots.draw_all(run.plots, data, check, predictions, result, trained)
    return result
