"""Retraining: nothing new, or a challenger that takes the champion's place only where it is shown to be better."""

from tasks import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Annotated, Any

from prefect import flow, runtime
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from flows.finetune import finetune
from tasks.approval import ask_for_approval, check_approval
from tasks.config import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    GateConfig,
    ModelConfig,
    RetrainConfig,
    RunConfig,
    TrackingConfig,
    TrainingConfig,
    checked,
)
from tasks.history import publish
from tasks.outcomes import RetrainResult
from tasks.recording import found_input, live
from tasks.registry import settle
from tasks.retraining import choose_challenger, decide, inputs_key, judge_challenger, show_gate, skipped
from tasks.tracking import find_champion, make_store
from tasks.work import as_one, work_folder

MODEL = RetrainConfig.model_fields["tracking"].default


def flow_run_name() -> str:
    config = checked(RetrainConfig, runtime.flow_run.parameters)
    return f"retrain {config.tracking.registered_model}"


@flow(name="retrain", flow_run_name=flow_run_name, validate_parameters=True)
def retrain(
    model: ModelConfig = ModelConfig(),  # noqa: B008  (frozen)
    data: DataConfig = DataConfig(),  # noqa: B008
    adapter: AdapterConfig = AdapterConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    tracking: TrackingConfig = MODEL,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    offline: bool = False,
    gate: GateConfig = GateConfig(),  # noqa: B008
    refresh_test: bool = False,
    force: bool = False,
) -> Any:  # a RetrainResult, in a state that says what came of it
    """Train a challenger where there is something new, and promote it where it is shown to beat the champion.

    Args:
        model: The foundation model that the adapter is trained on.
        data: The texts and labels, and which part of them is used for what.
        adapter: The small set of weights that is trained.
        training: How the adapter is trained.
        evaluation: How foundation model and adapter are measured and compared.
        tracking: Where and how the runs appear in MLflow, and the registered model that is retrained.
        seed: Seed of every random choice of the run.
        offline: Use only what is already on this machine; ask no Hub.
        gate: What a challenger must show before it takes the champion's place.
        refresh_test: Draw a new test set from the data as they are now; else the champion's stays frozen.
        force: Train and promote whatever the gate says; this goes on record.
    """
    config = RetrainConfig(
        model=model,
        data=data,
        adapter=adapter,
        training=training,
        evaluation=evaluation,
        tracking=tracking,
        seed=seed,
        offline=offline,
        gate=gate,
        refresh_test=refresh_test,
        force=force,
    )
    name, logger = str(tracking.registered_model), get_run_logger()
    check_approval(config)
    live()
    found = found_input(config.run_config(), config.run_config())
    inputs = inputs_key(config, *found)
    make_store()
    settle(name)
    if not force and (done := skipped(name, inputs)):
        return said(done)
    work = work_folder(config, *found)
    with as_one(work):
        if not force and (done := skipped(name, inputs)):  # by the same retraining, which was waited for
            return said(done)
        champion = find_champion(name)
        challenger = choose_challenger(config, champion, found[0], inputs, work)
        result = finetune(**{field: getattr(challenger, field) for field in RunConfig.model_fields})
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
