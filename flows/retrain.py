"""Retraining: nothing new, or a challenger that takes the champion's place only where it is shown to be better."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.finetune import finetune
from flows.parameters import parameters_of, told
from tasks.base.outcomes import RetrainResult
from tasks.base.work import as_one, work_folder
from tasks.data.prepare import found_input
from tasks.registry.decisions import settle
from tasks.registry.publishing import publish
from tasks.retraining.approval import ask_for_approval, check_approval
from tasks.retraining.challenger import choose_challenger, decide, inputs_key, judge_challenger, show_gate, skipped
from tasks.settings.config import RetrainConfig
from tasks.tracking.flow import first_sign_of_life, live
from tasks.tracking.opening import make_store
from tasks.tracking.versions import find_champion


@first_sign_of_life
def flow_run_name() -> str:
    config = told(RetrainConfig)
    return f"retrain {config.tracking.registered_model}"


@flow(name="retrain", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(RetrainConfig)
def retrain(**given: Any) -> Any:  # a RetrainResult, in a state that says what came of it
    """Train a challenger where there is something new, and promote it where it is shown to beat the champion."""
    config = RetrainConfig(**given)
    name, logger = str(config.tracking.registered_model), get_run_logger()
    check_approval(config)
    live()
    found = found_input(config.run_config(), config.run_config())
    inputs = inputs_key(config, *found)
    make_store()
    settle(name)
    if not config.force and (done := skipped(name, inputs)):
        return said(done)
    work = work_folder(config, *found)
    with as_one(work):
        if not config.force and (done := skipped(name, inputs)):  # by the same retraining, which was waited for
            return said(done)
        champion = find_champion(name)
        challenger = choose_challenger(config, champion, found[0], inputs, work)
        result = finetune(**dict(challenger))
        judged = judge_challenger(config, challenger, result, champion, work)
        show_gate(config, result, judged, work)
        approval = ask_for_approval(config, judged)
        done = decide(config, result, champion, judged, approval)
        publish(name)
        logger.info("%s %s: %s", done.action.capitalize(), done.subject, done.reason)
    return said(done)


def said(result: RetrainResult) -> Any:
    """What came of it is the name of the state, which Prefect's list of runs shows."""
    return Completed(name=result.action.capitalize(), message=result.reason, data=result)
