"""The main path with an eighth, a quarter, half and all of the training rows: would more of them help?"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.parameters import parameters_of, told
from flows.seeds import named, run_one, seed_configs
from tasks.base.outcomes import LearningCurveResult
from tasks.base.records import RunResult
from tasks.base.work import work_folder
from tasks.data.prepare import found_input
from tasks.settings.config import LearningCurveConfig, RunConfig
from tasks.studies.learning_curve import check_sentence, next_sentence, rows_of_curve, summarize_curve
from tasks.tracking.address import where_to_find
from tasks.tracking.flow import first_sign_of_life, flow_tags, link_to_mlflow, live
from tasks.tracking.run import tracked_run


@first_sign_of_life
def flow_run_name() -> str:
    return whole(told(LearningCurveConfig)).run_name()


@flow(name="learning-curve", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(LearningCurveConfig)
def learning_curve(**given: Any) -> LearningCurveResult:
    """Run `finetune` with ever more of the training rows, for each of several seeds, and say what more would bring."""
    asked = LearningCurveConfig(**given)
    config, together = asked.run_config(), whole(asked)
    logger = get_run_logger()
    seeds = [one.seed for one in seed_configs(config, asked.seeds)]
    live()
    source, base = found_input(config, together)
    work = work_folder(together, source, base)
    with tracked_run(together, work, flow_tags()):
        link_to_mlflow(work)
        counts = rows_of_curve(config, source)
        logger.info("Learning curve with %s training rows", ", ".join(f"{count:,}" for count in counts))
        results = tuple(tuple(part(config, seed, count, counts[-1]) for seed in seeds) for count in counts)
        result = summarize_curve(work, config, counts, results)
        logger.info("%s %s", next_sentence(result), check_sentence(result))
        logger.info("Recorded: %s", where_to_find(result.run_id))
    return result


def whole(asked: LearningCurveConfig) -> RunConfig:
    """The run that all others belong to."""
    return named(asked.run_config(), f"learning curve, {asked.seeds} seeds")


def part(config: RunConfig, seed: int, count: int, most: int) -> RunResult:
    """The plain run with this seed on `count` of `most` training rows."""
    words = f"{count:,} rows, seed {seed}"
    return run_one(named(part_config(config, seed, count, most), words), words)


def part_config(config: RunConfig, seed: int, count: int, most: int) -> RunConfig:
    """Each seed draws rows of its own, its fewer among its more; the first seed draws those of the plain run.

    With the same rows for all seeds their spread would not show how much hangs on the rows, which with few of them is
    more than what hangs on the seed, and the interval of what more would bring would be too narrow. No run registers
    its model: most have learned from a part of the rows.
    """
    data, place = config.data, seed - config.seed
    if count < most or data.max_train_rows is not None:
        first = data.split_seed if data.draw_seed is None else data.draw_seed
        draw = (first + place) % 2**32 if place else data.draw_seed
        data = data.model_copy(update={"max_train_rows": count, "draw_seed": draw})
    tracking = config.tracking.model_copy(update={"registered_model": None})
    return config.model_copy(update={"data": data, "seed": seed, "tracking": tracking})
