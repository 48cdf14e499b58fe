"""What goes to MLflow, apart from the flow that calls it."""

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, PERMISSION_DENIED

from tasks.base import liveness, machine
from tasks.base.work import WORK
from tasks.evaluation.recording import input_values, model_values
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.tracking import opening, runlist, sending, versions
from tasks.tracking import run as tracking
from tasks.tracking.address import FLOW_RUN_TAG, experiment_url, public_uri, serve_command, tracking_uri, ui
from tasks.tracking.journal import HEAD, LINES, Head, Journal, journal_of, now, waits
from tests.conftest import Trained, only_run, register, tracked


@pytest.mark.parametrize(
    ("end", "status"), [(None, "FINISHED"), (ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_run_ends_as_its_block_does(workplace: Path, end: BaseException | None, status: str) -> None:
    try:
        with tracked(tags={"made.by": "a test"}):
            if end:
                raise end
    except (ValueError, KeyboardInterrupt) as error:
        assert error is end
    run = only_run(workplace)
    assert run.info.status == status
    assert run.data.tags["made.by"] == "a test"


def test_store_lies_in_the_current_folder_and_artifacts_beside_it(workplace: Path) -> None:
    with tracked() as run_id:
        pass
    assert (workplace / "mlruns/mlflow.db").exists()
    assert (workplace / "mlruns/artifacts" / run_id / "artifacts/config.yaml").exists()
    assert only_run(workplace).info.artifact_uri == f"mlflow-artifacts:/{run_id}/artifacts"


def test_address_in_the_environment_is_used(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mlruns").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlruns/mlflow.db")
    with tracked({"tracking": {"experiment": "other"}}):
        pass
    assert only_run(elsewhere, "other").info.status == "FINISHED"
    assert not (workplace / "mlruns/mlflow.db").exists()


def test_deleted_experiment_is_refused_with_what_to_do(workplace: Path) -> None:
    import mlflow

    with tracked():
        pass
    mlflow.delete_experiment(mlflow.get_experiment_by_name("peft-flow").experiment_id)
    with (
        pytest.raises(InputError, match=r"tracking\.experiment: 'peft-flow' was deleted"),
        tracked(),
    ):
        pass


def test_store_that_cannot_be_made_is_refused_with_its_path(workplace: Path) -> None:
    (workplace / "mlruns").write_text("a file")
    with pytest.raises(InputError, match="mlruns cannot be made"), tracked():
        pass


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@mlflow.example/base", "https://mlflow.example/base"),
        ("postgresql://me:secret@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("https://me:se@cret@host:5000/x", "https://host:5000/x"),
        ("https://me:se%40cret@host", "https://host"),
        ("https://me:se/cret@host/x", "https://host/x"),
        ("https://me:se@c/ret@host", "https://host"),
        ("https://me:se:cr:et@host", "https://host"),
        ("https://me:se://cret@host/", "https://host/"),
        ("postgresql://me:se?c#ret@host/db?sslmode=require", "postgresql://host/db"),
        ("https://secret-token@host/x", "https://host/x"),
        ("mysql+pymysql://:secret@host/db", "mysql+pymysql://host/db"),
        ("https://host/x?token=secret", "https://host/x"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("me:secret@host:5000/x", "host:5000/x"),
        ("https://me:secret@[::1]:5000", "https://[::1]:5000"),
        # nothing to hide
        *(
            (address, address)
            for address in (
                "sqlite:////tmp/a@b/mlflow.db",
                "https://host:5000/a@b",
                "https://host/@team",
                "http://[::1]:5000/x",
                "http://127.0.0.1:5000",
                "databricks://profile",
                "databricks",
            )
        ),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert public_uri() == shown
    monkeypatch.setenv("MLFLOW_UI_URL", address)
    assert ui() == shown.rstrip("/")


def test_command_that_shows_a_store_works_in_its_folder(workplace: Path) -> None:
    assert serve_command()[:2] == ["mlflow", "server"]
    (workplace / "prefect.yaml").touch()
    assert serve_command() == ["peft-flow", "up"]


def test_command_to_promote_can_be_copied_into_a_shell() -> None:
    command = versions.promote_command("Max's model", "2")
    assert shlex.split(command) == ["peft-flow", "promote", "Max's model", "2", "--reason", "TEXT"]


def left(work: str, experiment: str = "peft-flow", **head: Any) -> Journal:
    """A run that was killed in the folder `work`, of which MLflow knows nothing yet."""
    folder = (WORK / work).resolve()
    folder.mkdir(parents=True)
    described = {"key": work, "name": work, "experiment": experiment, "started": now(), "parent": None} | head
    journal = Journal.create(folder, Head.model_validate(described))
    journal.add("begin", {"flow_run_id": None, "tags": {"left": work}})
    return journal


def names_in_mlflow() -> set[str]:
    api = MlflowClient(tracking_uri())
    return {run.info.run_name for run in api.search_runs([one.experiment_id for one in api.search_experiments()])}


def delete_experiment(journal: Journal) -> None:
    api = MlflowClient(tracking_uri())
    api.delete_experiment(api.create_experiment(journal.head.experiment))


SPOILED: dict[str, Callable[[Journal], object]] = {
    "experiment deleted": delete_experiment,
    "value refused": lambda journal: journal.add("tags", {"a/../b": "no name of a tag"}),
    "head gone": lambda journal: (journal.folder / HEAD).unlink(),
    "line of another version": lambda journal: (journal.folder / LINES).write_text('{"kind": "later"}\n'),
    "file gone": lambda journal: journal.add("inputs", {"folder": "../gone", "split": "test", "columns": []}),
}


def test_runs_that_can_never_be_delivered_are_reported_and_hold_up_no_other(
    workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening.make_store()
    spoiled = {fault: left(f"{number}", f"of {fault}") for number, fault in enumerate(SPOILED)}
    for fault, journal in spoiled.items():
        SPOILED[fault](journal)
    sound = left("z")
    for _ in range(2):
        tracking._next_attempt.clear()
        tracking.send_what_waits()
    assert "z" in names_in_mlflow() and not waits(sound.folder)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for journal, words in zip(spoiled.values(), said, strict=True):
        assert "does not accept what an earlier run recorded" in words and str(journal.folder) in words
        assert waits(journal.folder)
    assert "'of experiment deleted' was deleted in MLflow; restore it" in said[0]
    api = MlflowClient(tracking_uri())
    api.restore_experiment(api.get_experiment_by_name("of experiment deleted").experiment_id)
    tracking._next_attempt.clear()
    tracking.send_what_waits()
    assert "0" in names_in_mlflow() and not waits(spoiled["experiment deleted"].folder)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ConnectionRefusedError("refused"), 1),
        (MlflowException("no", error_code=PERMISSION_DENIED), 1),
        (MlflowException("broken", error_code=INTERNAL_ERROR), 3),
    ],
)
def test_others_are_tried_but_where_they_would_meet_the_same(
    error: Exception, tries: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def send(journal: Journal) -> None:
        tried.append(journal.head.key)
        raise error

    monkeypatch.setattr(tracking, "send", send)
    monkeypatch.setattr(tracking, "answered", lambda ask, *_: ask())
    for name in "abc":
        left(name)
    tracking.send_what_waits()
    assert len(tried) == tries


def test_what_mlflow_refuses_of_a_run_is_reported_before_the_training(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of another version, or with rules of its own, takes less than the one that we know."""

    def refuse(*_: Any) -> None:
        raise MlflowException("Tag value has 900 characters, 500 allowed", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setitem(sending.SENDERS, "params", refuse)
    with pytest.raises(InputError, match=r"^MLflow \(sqlite:.*\) refuses this run: Tag value has 900"), tracked():
        pass
    assert only_run(workplace).info.status == "FAILED" and not list(WORK.glob(f"*/{LINES}"))


def test_values_that_are_no_finite_numbers_arrive(workplace: Path) -> None:
    """Also as older versions wrote them down, as null."""
    opening.make_store()
    journal = left("a")
    for step, value in enumerate((math.nan, math.inf, None)):
        journal.add("metrics", {"loss": value}, step)
    sending.send(Journal(journal.folder))
    api = MlflowClient(tracking_uri())
    values = [point.value for point in api.get_metric_history(str(journal.sent.run_id), "loss")]
    assert len(values) == 3 and sum(map(math.isnan, values)) == 2 and max(values[1:2]) > 1e308


def test_lines_that_go_in_one_call_are_all_counted_as_sent(workplace: Path) -> None:
    opening.make_store()
    journal = left("a")
    for step in range(3):
        journal.add("metrics", {"loss": 0.5}, step)
    sending.send(Journal(journal.folder))
    assert journal.sent.lines == len(journal.lines) == 4 and not journal.waiting


def test_run_whose_parents_folder_was_removed_is_delivered(workplace: Path) -> None:
    opening.make_store()
    left("a", parent=str((WORK / "gone").resolve()))
    tracking.send_what_waits()
    assert names_in_mlflow() == {"a"}


@pytest.mark.parametrize("name", ["a", "it's 100 %_", "n" * 250])
def test_runs_of_one_name_differ_by_a_number(name: str, workplace: Path) -> None:
    opening.make_store()
    for work in ("1", "2", "3"):
        left(work, name=name)
    left("other experiment", name=name, experiment="other")
    left("longer", name=f"{name[:200]} and more")
    tracking.send_what_waits()
    short = name[:246]
    assert names_in_mlflow() == {name, f"{short} (2)", f"{short} (3)", f"{name[:200]} and more"}


def test_experiments_runs_and_tags_may_have_any_letters(workplace: Path) -> None:
    for work, name in enumerate(("it's 100 % (new) é映;`", ' a/b:c@d?e#f"g\\ ', "./..")):
        settings = {"experiment": name, "run_name": name, "tags": [f"team={name}"]}
        with tracked({"tracking": settings}, work=f"{work}"):
            pass
        run = only_run(workplace, name)
        assert (run.info.run_name, run.data.tags["team"], run.info.status) == (name, name, "FINISHED")


def test_nested_values_are_flattened_with_dots() -> None:
    values = {"a": {"b": 1, "c": {"d": None}}, "e": ["x", "y"], "f": []}
    assert tracking.flatten(values) == {"a.b": 1, "a.c.d": None, "e": "x,y", "f": ""}


def test_local_part_of_a_version_is_left_out() -> None:
    assert "+" not in machine.public_version("torch")
    assert machine.public_version("torch") == "2.13.0"


def test_view_of_the_run_list_is_made_once_and_then_left_to_people(workplace: Path) -> None:
    import mlflow
    from mlflow import MlflowClient

    with tracked() as run_id:
        pass
    experiment = mlflow.get_experiment_by_name("peft-flow")
    tags = runlist.experiment_tags(experiment.experiment_id)
    assert experiment.tags.items() >= tags.items()
    assert experiment_url(run_id).startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    name, _ = tags
    MlflowClient(tracking_uri()).set_experiment_tag(experiment.experiment_id, name, "somebody's own")
    with tracked():
        pass
    assert mlflow.get_experiment_by_name("peft-flow").tags[name] == "somebody's own"


def test_event_of_a_run_has_the_score_of_its_task(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = register(workplace, "prices", 1, [{"tuned/mae": 0.5, "delta/mae": -0.25}])
    run_id = api.get_model_version("prices", "1").run_id
    api.set_tag(run_id, FLOW_RUN_TAG, "f-1")
    said: list[dict[str, str]] = []
    monkeypatch.setattr(sending, "announce", lambda *facts: said.append(facts[-1]))
    sending.end_run(api, run_id, "FINISHED", 1)
    assert said[0].items() >= {"tuned_mae": "0.5000", "delta_mae": "-0.2500"}.items()


def test_stop_is_not_called_a_failure_when_something_else_breaks_on_the_way_out(workplace: Path) -> None:
    """Ctrl-C in a terminal reaches Prefect's server too, which then no longer answers."""
    with pytest.raises(RuntimeError, match="seed 1"), tracked():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise ConnectionError("refused")
            except ConnectionError as error:
                raise RuntimeError("seed 1 failed") from error
    assert only_run(workplace).info.status == "KILLED"


def test_run_inside_another_is_its_child(workplace: Path) -> None:
    from mlflow import MlflowClient

    with tracked() as parent:
        with pytest.raises(ValueError), tracked({"seed": 1}, work="b") as child:
            raise ValueError
        assert MlflowClient().get_run(parent).info.status == "RUNNING"
    runs = {run_id: MlflowClient(tracking_uri()).get_run(run_id) for run_id in (parent, child)}
    assert runs[child].data.tags["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in runs[parent].data.tags
    assert [runs[run_id].info.status for run_id in (parent, child)] == ["FINISHED", "FAILED"]


def test_result_that_nobody_has_seen_is_given_once_more(workplace: Path) -> None:
    """A process that is killed after its run finished and before it has ended has told nobody."""
    from tasks.base import work

    with tracked() as first:
        pass
    folder = str((work.WORK / "a").resolve())
    work._handed_over.discard(folder)  # as in another process, and the first was killed
    with tracked() as second:
        assert second == first
    work._handed_over.discard(folder)
    work.write_text(work.RunFolder(folder).delivered, "")  # as in another process, and the first ended in good order
    with tracked() as third:
        assert third != first


def test_whoever_waited_for_the_same_run_takes_its_result(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the other process has ended in good order before this one, on a busy machine, came to its turn."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    from tasks.base import work

    waiting = Event()
    monkeypatch.setattr(work, "tell", lambda line: waiting.set())

    def run_again() -> str:
        with tracked() as run_id:
            return run_id

    with tracked() as first:
        pass
    folder = str((work.WORK / "a").resolve())
    work.write_text(work.RunFolder(folder).delivered, "")
    with ThreadPoolExecutor(1) as pool:
        with work.sole_user(folder):
            second = pool.submit(run_again)
            assert waiting.wait(10)
        assert second.result(30) == first
    assert run_again() != first


def test_retry_that_waited_for_the_first_attempt_takes_its_result(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.base import work

    with tracked() as first:
        pass
    work.write_text(work.RunFolder((work.WORK / "a").resolve()).delivered, "")
    monkeypatch.setattr(liveness, "followed", lambda flow_run_id: True)
    with tracked() as second:
        assert second == first


def test_finished_part_of_a_run_that_failed_is_not_begun_anew(workplace: Path) -> None:
    """Of several seeds, those that were done are not trained again; when all are, the next start is a new one."""
    with pytest.raises(ValueError), tracked() as parent:
        with tracked({"seed": 1}, work="b") as child:
            pass
        raise ValueError
    with tracked() as again, tracked({"seed": 1}, work="b") as child_again:
        assert (again, child_again) == (parent, child)
    with tracked() as another, tracked({"seed": 1}, work="b") as another_child:
        assert another != parent and another_child != child


NAME = "anna's 100 % reviews; `é`"
"""Of a registered model: MLflow takes it, its filters take it in the right quotes only."""


@pytest.mark.parametrize(
    "call",
    [
        *("create_logged_model", "log_model_artifacts", "register"),
        *(pytest.param(call, marks=pytest.mark.endurance) for call in ("log_outputs", "finalize_logged_model")),
    ],
)
def test_model_whose_logging_broke_off_after_a_call_is_finished(
    call: str, trained: Trained, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    owner, name = (mlflow, "register_model") if call == "register" else (MlflowClient, call)
    original, calls = getattr(owner, name), []

    def break_off(*arguments: Any, **more: Any) -> Any:
        answer = original(*arguments, **more)
        calls.append(name)
        if len(calls) == 1:
            raise ConnectionError("the power went")
        return answer

    monkeypatch.setattr(owner, name, break_off)
    config = trained.config.model_dump() | {"tracking": {"registered_model": NAME}}
    table = pd.DataFrame({"text": ["a warm film", "a cold film"]})
    work = str((WORK / "a").resolve())
    with tracked(config) as run_id:
        values = model_values(work, validated(config), trained.data, trained.adapter, table)
        tracking.log(work, "model", values)
        assert tracking.try_to_send(work, at_once=True) or tracking.try_to_send(work, at_once=True)
        model_id = tracking.send_all(work).model_id
    assert calls, "it did break off"
    api = MlflowClient(tracking_uri())
    run = api.get_run(run_id)
    (model,) = api.search_logged_models([run.info.experiment_id])
    assert model.model_id == model_id and model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model_id]
    (version,) = api.search_model_versions(f'name="{NAME}"')
    assert version.run_id == run_id
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert loaded.metadata.run_id == run_id and len(loaded.predict(table)) == 2


def test_two_runs_that_log_the_same_data_set_at_once_both_have_it(
    trained: Trained, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's database refuses the second of two rows, whichever run is told so."""
    import uuid

    from mlflow import MlflowClient
    from mlflow.store.tracking import sqlalchemy_store

    values = input_values(str(WORK / "a"), trained.config, trained.data, "test")
    refused = []

    def send(name: str) -> None:
        work = str((WORK / name).resolve())
        journal_of(work).add("inputs", values)
        tracking.send_all(work)

    with tracked() as one, tracked({"seed": 1}, work="b") as other:

        class Late:
            """The other run is faster, between MLflow's look for the data set and its adding of it."""

            def uuid4(self) -> uuid.UUID:
                monkeypatch.setattr(sqlalchemy_store, "uuid", uuid)
                refused.append("one")
                send("b")
                return uuid.uuid4()

        monkeypatch.setattr(sqlalchemy_store, "uuid", Late())
        send("a")
    assert refused
    api = MlflowClient(tracking_uri())
    for run_id in (one, other):
        (given,) = api.get_run(run_id).inputs.dataset_inputs
        assert given.dataset.name == values["name"]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_deletion_during_a_run_is_reported_with_what_can_be_done(workplace: Path, what: str) -> None:
    from mlflow import MlflowClient

    api = MlflowClient(tracking_uri())
    with tracked() as run_id:
        work = str((WORK / "a").resolve())
        experiment = api.get_run(run_id).info.experiment_id
        if what == "run":
            api.delete_run(run_id)
        else:
            api.delete_experiment(experiment)
        tracking._next_attempt.clear()
        tracking.log(work, "tags", {"verdict": "improved"})
        if what == "experiment":
            command = f"mlflow experiments restore --experiment-id {experiment}"
            with pytest.raises(InputError, match=rf"{command}\) and give the same command again.*nothing is computed"):
                tracking.send_all(work)
            api.restore_experiment(experiment)
        again = str(tracking.send_all(work).run_id)
    assert (again == run_id) == (what == "experiment"), "a run that was deleted is told once more, as another"
    run = api.get_run(again)
    assert run.data.tags["verdict"] == "improved" and run.info.status == "FINISHED"
