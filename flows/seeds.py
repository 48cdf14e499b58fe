"""The main path once for each of several seeds: how much of a difference is only the seed?"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any, TypeVar

from prefect import flow
from prefect.logging import get_run_logger

from flows.finetune import finetune
from flows.parameters import parameters_of, told
from tasks.base.outcomes import SeedsResult
from tasks.base.records import RunResult
from tasks.base.verdict import capital
from tasks.base.work import work_folder
from tasks.data.prepare import found_input
from tasks.evaluation.wording import caution
from tasks.settings.config import RunConfig, SeedsConfig
from tasks.settings.fields import InputError
from tasks.studies.seeds import headline, noise_sentence, summarize_seeds
from tasks.tracking.address import where_to_find
from tasks.tracking.flow import first_sign_of_life, flow_tags, link_to_mlflow, live
from tasks.tracking.run import tracked_run

C = TypeVar("C", bound=RunConfig)


@first_sign_of_life
def flow_run_name() -> str:
    asked = told(SeedsConfig)
    return named(asked.run_config(), f"{asked.seeds} seeds").run_name()


@flow(name="finetune-seeds", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(SeedsConfig)
def finetune_seeds(**given: Any) -> SeedsResult:
    """Run `finetune` once for each of several seeds on the same rows, and find out how much the seed alone changes."""
    asked = SeedsConfig(**given)
    config, seeds = asked.run_config(), asked.seeds
    logger = get_run_logger()
    configs = seed_configs(config, seeds)
    live()
    together = named(config, f"{seeds} seeds")
    work = work_folder(together, *found_input(config, together))
    with tracked_run(together, work, flow_tags()):
        link_to_mlflow(work)
        results = tuple(run_one(one, f"seed {one.seed}") for one in configs)
        result = summarize_seeds(work, config, results)
        logger.info("%s. %s %s", capital(result.verdict), headline(result), noise_sentence(result))
        if result.cautions:
            logger.warning("%s", caution(result.cautions))
        logger.info("Recorded: %s", where_to_find(result.run_id))
    return result


def seed_configs(config: RunConfig, seeds: int) -> list[RunConfig]:
    """The plain run of each seed, called after it; InputError where the seeds run out."""
    if config.seed + seeds > 2**32:
        raise InputError(f"seed: {seeds} seeds from {config.seed} on would go beyond {2**32 - 1}; begin lower")
    return [
        named(config, f"seed {seed}").model_copy(update={"seed": seed})
        for seed in range(config.seed, config.seed + seeds)
    ]


def named(config: C, suffix: str) -> C:
    tracking = config.tracking.model_copy(update={"run_name": config.name_of(suffix)})
    return config.model_copy(update={"tracking": tracking})


def run_one(config: RunConfig, part: str) -> RunResult:
    """The plain flow; a failure says which `part` of the whole it was."""
    try:
        return finetune(**dict(config))
    except InputError:
        raise
    except Exception as error:
        raise RuntimeError(f"{part} failed: {type(error).__name__}: {error}") from error
