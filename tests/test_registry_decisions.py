"""Which version is in use: one at a time, whole or not at all, on record."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import decisions as registry
from tasks.registry.decisions import Overtaken, decisions, keep, promote, rollback, settle
from tasks.settings.fields import InputError
from tasks.tracking import adapters, decision
from tasks.tracking.decision import Decision
from tasks.tracking.flow import flow_tags
from tests.conftest import ROOT, register

Change = Callable[[], Decision]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has three versions of `reviews` and no champion; to be copied, making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    register(folder, "reviews", 3)
    return folder


@pytest.fixture
def api(store: Path, workplace: Path) -> Any:
    """The client of the current folder's own copy of it."""
    return copied(store, workplace)


def copied(store: Path, folder: Path) -> Any:
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by run, which is in another folder in each copy
    shutil.copytree(store / "mlruns", folder / "mlruns")
    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


def aliases(api: Any) -> dict[str, str]:
    return {alias: str(version) for alias, version in api.get_registered_model("reviews").aliases.items()}


def test_promotion_moves_the_aliases_and_says_why_on_the_version(api: Any) -> None:
    first = promote("reviews", "1", "the first model", "first")
    assert aliases(api) == {"champion": "1"} and first.previous is None
    second = promote("reviews", "2", "gained 0.020 (0.008 to 0.031)", "gate", expected="1")
    assert aliases(api) == {"champion": "2", "previous": "1"}
    assert (second.action, second.previous, second.by) == ("promoted", "1", "gate")
    version = api.get_model_version("reviews", "2")
    assert version.tags["decision"] == "promoted"
    assert version.tags["decision.reason"] == "gained 0.020 (0.008 to 0.031)"
    assert version.tags["decision.by"] == "gate"
    assert version.tags["decision.at"].endswith(" UTC")
    assert Decision.model_validate_json(version.tags["decision.1"]) == second
    assert version.description.startswith("Promoted on 20")
    assert "by gate: gained 0.020 (0.008 to 0.031)" in version.description
    assert "Champion before: version 1" in version.description


def test_version_that_is_not_promoted_changes_no_alias_and_is_on_record(api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    kept = keep("reviews", "2", "no evidence of a gain", "gate")
    assert aliases(api) == {"champion": "1"} and kept.previous == "1"
    version = api.get_model_version("reviews", "2")
    assert version.tags["decision"] == "kept"
    assert version.description.startswith("Not promoted on ")
    assert decisions("reviews")[-1] == kept


def test_version_that_is_not_promoted_where_there_is_no_champion_is_rejected(api: Any) -> None:
    decision = keep("reviews", "1", "significantly worse than linear probe", "gate")
    version = api.get_model_version("reviews", "1")
    assert (decision.action, decision.previous, version.tags["decision"]) == ("rejected", None, "rejected")
    assert aliases(api) == {} and version.description.startswith("Not promoted on ")
    assert "Champion: no version" in version.description


def test_older_record_of_a_rejected_version_is_read(api: Any) -> None:
    """It says `kept`, whether or not there was a champion to keep."""
    old = Decision(name="reviews", version="1", action="kept", reason="a tie", by="gate", at=5, previous=None)
    api.set_model_version_tag("reviews", "1", "decision.1", old.model_dump_json())
    assert decisions("reviews") == [old]
    assert decision.outcome(old, "1") == "rejected"
    assert decision.outcome(old.model_copy(update={"previous": "3"}), "1") == "kept"
    keep("reviews", "1", "still a tie", "gate")
    assert [decision.action for decision in decisions("reviews")] == ["kept", "rejected"]


def test_rollback_exchanges_champion_and_previous_and_is_on_record_with_both(api: Any) -> None:
    for version in ("1", "2"):
        promote("reviews", version, "better", "gate")
    back = rollback("reviews", "complaints about sarcasm", "anna")
    assert aliases(api) == {"champion": "1", "previous": "2"}
    assert (back.version, back.previous) == ("1", "2")
    restored, out = (api.get_model_version("reviews", version) for version in ("1", "2"))
    assert restored.tags["decision"] == "champion again" and out.tags["decision"] == "rolled back"
    assert restored.tags["decision.2"] == out.tags["decision.2"] == back.model_dump_json()
    assert "complaints about sarcasm" in restored.description and "complaints about sarcasm" in out.description
    again = promote("reviews", "2", "retrained them to like it", "anna")
    assert [decision.action for decision in decisions("reviews")] == [
        *("promoted", "promoted", "rolled back", "promoted")
    ]
    assert decisions("reviews")[-1] == again
    assert {"decision.1", "decision.2", "decision.3"} <= api.get_model_version("reviews", "2").tags.keys()


def test_decision_of_a_flow_leads_to_its_page(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "f-1")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    decision = promote("reviews", "1", "the first model", "first", tags=flow_tags())
    assert decision.flow_run_id == "f-1"
    assert api.get_model_version("reviews", "1").description.endswith(
        "[Run page in Prefect](http://127.0.0.1:4200/runs/flow-run/f-1)"
    )


def test_what_people_wrote_about_a_version_stays(api: Any) -> None:
    api.update_model_version("reviews", "1", "Trained on the *March* export.")
    for number in range(3):
        keep("reviews", "1", f"reason {number}", "gate")
    text = api.get_model_version("reviews", "1").description
    assert text.endswith("\n\nTrained on the *March* export.")
    assert "reason 2" in text and "reason 1" not in text


def test_reason_is_one_line_without_secrets(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_TOKEN", "open-sesame")
    assert promote("reviews", "1", "first\n try with open-sesame", "first").reason == "first try with ***"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: promote("review", "1", "r", "b"), "there is no registered model 'review' in .*; it has reviews"),
        (lambda: promote("a/b", "1", "r", "b"), "without '/' and ':', not 'a/b'"),
        (lambda: promote("reviews", "4", "r", "b"), "no version '4' of reviews; it has 1, 2, 3"),
        (lambda: keep("reviews", "v1", "r", "b"), "no version 'v1' of reviews; it has 1, 2, 3"),
        (lambda: rollback("reviews", "r", "b"), "reviews has no previous champion"),
        (lambda: decisions("nothing"), "there is no registered model 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(change: Change, says: str, api: Any) -> None:
    with pytest.raises(InputError, match=says):
        change()
    assert aliases(api) == {} and decisions("reviews") == []


def test_champion_cannot_be_promoted_once_more(api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    with pytest.raises(InputError, match="version 1 of reviews is the champion already"):
        promote("reviews", "1", "once more", "anna")


def test_no_store_and_a_server_that_does_not_answer_are_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="there are no runs in"):
        promote("reviews", "1", "r", "b")
    assert not (workplace / "mlruns").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 does not answer; start it"):
        promote("reviews", "1", "r", "b")


# --- back and back again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ("+1 +2 back", "1"),
        ("+1 +2 +3 back back", "1"),
        ("+1 +2 back +3 back", "1"),
        ("+1 +2 back +2 +3 back", "2"),  # promoted once more: somebody likes it by now
        ("+1 +2 +1 back", "2"),
        ("+1 by-hand-3 +2 back", "3"),
        ("+1 +2 back by-hand-3 back", "1"),
    ],
)
def test_rollback_goes_to_the_champion_before_and_never_to_one_that_was_rolled_back_from(
    api: Any, done: str, expected: str
) -> None:
    for step in done.split():
        if step == "back":
            rollback("reviews", "complaints", "anna")
        elif step.startswith("+"):
            promote("reviews", step[1:], "better", "gate")
        else:
            api.set_registered_model_alias("reviews", "champion", step[-1])
    assert aliases(api)["champion"] == expected


@pytest.mark.parametrize("done", ["+1", "+1 +2 back", "+1 +2 +3 back back"])
def test_rollback_without_an_earlier_champion_says_so_and_changes_nothing(api: Any, done: str) -> None:
    for step in done.split():
        rollback("reviews", "r", "b") if step == "back" else promote("reviews", step[1:], "better", "gate")
    before = aliases(api)
    with pytest.raises(InputError, match=r"no previous champion to go back to; promote a version.*versions 1, 2, 3"):
        rollback("reviews", "once more", "anna")
    assert aliases(api) == before


# --- deleted in MLflow ------------------------------------------------------------------------------------------------

LOST = "reviews has no champion any more: {} was deleted in MLflow; go back .*peft-flow rollback reviews"
AFTER_1 = "after version 1"
NO_ALIAS = "reviews has no champion any more: the alias was taken off version 2 .*peft-flow promote reviews 2"
RENAMED = "registered model reviews was renamed to critics in MLflow; give that name, or rename it back"
RUN_GONE = "run [0-9a-f]{32} was deleted in MLflow; restore it .*mlflow runs restore --run-id [0-9a-f]{32}"
EXPERIMENT_GONE = "experiment 'peft-flow', with run .*, was deleted .*mlflow experiments restore --experiment-id 1"
UNUSED = "model: reviews cannot be used: "
REMOVED = "run [0-9a-f]{32} is not in MLflow any more"


def delete(what: str, api: Any) -> None:
    run_id = api.get_model_version("reviews", "2").run_id
    match what:
        case "run":
            api.delete_run(run_id)
        case "run, cleaned up":
            api.delete_run(run_id)
            api._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
        case "version":
            api.delete_model_version("reviews", "2")
        case "experiment":
            api.delete_experiment("1")
        case "name":
            api.rename_registered_model("reviews", "critics")
        case "alias":
            api.delete_registered_model_alias("reviews", "champion")
        case "model":
            api.delete_registered_model("reviews")


NONE_THERE = "there is no registered model 'reviews'"
SAID: dict[str, dict[str, str]] = {
    "run": {"predict": f"{UNUSED}{RUN_GONE}", "retrain": RUN_GONE, "history": RUN_GONE, "compare": RUN_GONE},
    "run, cleaned up": {
        "predict": f"model: reviews cannot be read: .*choose another version or run.*{REMOVED}",
        "retrain": REMOVED,
        "history": REMOVED,
        "compare": "there is no run",
    },
    "experiment": {
        "predict": f"{UNUSED}{EXPERIMENT_GONE}",
        "retrain": EXPERIMENT_GONE,
        "history": EXPERIMENT_GONE,
        "compare": EXPERIMENT_GONE,
    },
    "version": {
        **dict.fromkeys(("predict", "retrain", "history"), LOST.format(AFTER_1)),
        "rollback": f"the champion {AFTER_1} was deleted",
    },
    "alias": {"predict": f"model: {NO_ALIAS}", "retrain": NO_ALIAS, "history": NO_ALIAS, "rollback": NO_ALIAS},
    "name": dict.fromkeys(("predict", "retrain", "history", "rollback", "promote"), RENAMED),
    "model": {**dict.fromkeys(("history", "rollback", "promote"), NONE_THERE), "predict": "no .*registered model"},
}
"""By what was deleted: what each command says of it. What is not named here does its work without a word."""


@pytest.mark.parametrize("command", ["predict", "retrain", "history", "rollback", "promote", "compare"])
@pytest.mark.parametrize("what", SAID)
def test_each_command_says_what_was_deleted_and_what_to_do(
    what: str, command: str, api: Any, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tasks.registry.history import history_of, history_text
    from tasks.retraining.challenger import skipped
    from tasks.tracking.asking import stored_run

    run_id = api.get_model_version("reviews", "2").run_id
    (workplace / "settings.json").write_text("{}")
    api.log_artifact(run_id, str(workplace / "settings.json"), "model/artifacts/adapter")
    for version in ("1", "2"):
        promote("reviews", version, "better", "gate")
    delete(what, api)
    commands: dict[str, Callable[[], Any]] = {
        "predict": lambda: adapters.fetched_adapter("reviews", workplace / "adapter"),
        "retrain": lambda: skipped("reviews", "inputs"),
        "history": lambda: history_text(history_of("reviews")),
        "rollback": lambda: rollback("reviews", "complaints", "anna").version,
        "promote": lambda: promote("reviews", "3", "I like it", "anna").version,
        "compare": lambda: stored_run(run_id, workplace),
    }
    try:
        done = str(commands[command]())
    except InputError as error:
        said = f"{error} {caplog.text}"
    else:
        said = done + caplog.text
        assert command not in ("rollback", "promote") or done == {"rollback": "1", "promote": "3"}[command]
    assert re.search(SAID[what].get(command, ""), " ".join(said.split()), re.IGNORECASE), said
    if command not in SAID[what] and command != "compare":
        assert "deleted" not in said and "any more" not in said


@pytest.mark.parametrize("by", ["champion", "version", "run"])
@pytest.mark.parametrize("what", ["run", "experiment"])
def test_adapter_of_a_deleted_run_is_refused_by_any_name_until_it_is_restored(
    what: str, by: str, api: Any, workplace: Path
) -> None:
    run_id = api.get_model_version("reviews", "2").run_id
    (workplace / "settings.json").write_text("{}")
    for place in ("adapter", "model/artifacts/adapter"):
        api.log_artifact(run_id, str(workplace / "settings.json"), place)
    promote("reviews", "2", "better", "gate")
    delete(what, api)
    name = {"champion": "models:/reviews@champion", "version": "reviews/2", "run": run_id}[by]
    said = RUN_GONE if what == "run" else EXPERIMENT_GONE
    with pytest.raises(InputError, match=f"model: {name} cannot be used: {said}.*, or choose another version or run"):
        adapters.fetched_adapter(name, workplace / "adapter")
    _ = api.restore_run(run_id) if what == "run" else api.restore_experiment("1")
    assert (adapters.fetched_adapter(name, workplace / "adapter")[0] / "settings.json").is_file()


def test_first_retraining_that_was_interrupted_starts_again(api: Any) -> None:
    from tasks.retraining.challenger import INPUTS_TAG, skipped

    api.set_tag(api.get_model_version("reviews", "1").run_id, INPUTS_TAG, "inputs")
    settle("reviews")
    assert skipped("reviews", "inputs") is None, "its version has no decision yet"
    with pytest.MonkeyPatch.context() as place, pytest.raises(RuntimeError):
        break_off(place, 0, ConnectionError())
        promote("reviews", "1", "better", "gate")
    api.delete_registered_model("reviews")
    settle("reviews")  # what waits for a model that is gone stops nobody
    assert skipped("reviews", "inputs") is None


@pytest.mark.parametrize(
    ("done", "told"),
    [
        ("reject 1", ": version 1, made of the same, was rejected; change data or settings, or promote it "
                     "(peft-flow promote reviews 1 --reason TEXT)"),
        ("promote 1", ""),
        ("promote 2, keep 1", ": version 1, made of the same, was not promoted"),
        ("promote 2, promote 1, back", ": version 1, made of the same, was rolled back"),
    ],
)  # fmt: skip
def test_skipped_retraining_says_what_became_of_the_version_made_of_the_same(done: str, told: str, api: Any) -> None:
    from tasks.retraining.challenger import INPUTS_TAG, skipped

    api.set_tag(api.get_model_version("reviews", "1").run_id, INPUTS_TAG, "inputs")
    for step in done.split(", "):
        match step.split():
            case ["promote", version]:
                promote("reviews", version, "better", "gate")
            case ["back"]:
                rollback("reviews", "complaints", "anna")
            case [_, version]:
                keep("reviews", version, "not better than TF-IDF", "gate")
    result = skipped("reviews", "inputs")
    assert result and re.fullmatch(rf"nothing new since 20\d\d-\d\d-\d\d{re.escape(told)}", result.reason)


@pytest.mark.parametrize("gone", ["version", "model", "nothing"])
def test_challenger_whose_version_was_deleted_is_registered_again(api: Any, gone: str) -> None:
    from types import SimpleNamespace

    from tasks.retraining.challenger import version_of

    run_id = api.get_model_version("reviews", "2").run_id
    model = api.create_logged_model("1", name="model", source_run_id=run_id)
    api.finalize_logged_model(model.model_id, "READY")
    delete(gone, api)
    result: Any = SimpleNamespace(version="2", run_id=run_id, model_uri=f"models:/{model.model_id}")
    found = version_of("reviews", result)
    assert found == {"version": "4", "model": "1", "nothing": "2"}[gone]
    assert api.get_model_version("reviews", found).run_id == run_id


@pytest.mark.parametrize("name", ["reviews/2", "models:/reviews@champion", "reviews@previous"])
def test_model_is_found_under_no_part_of_its_old_name(api: Any, workplace: Path, name: str) -> None:
    promote("reviews", "2", "better", "gate")
    delete("name", api)
    with pytest.raises(InputError, match=f"model: {RENAMED}"):
        adapters.fetched_adapter(name, workplace / "adapter")


def test_rollback_from_a_deleted_champion_is_on_record(api: Any) -> None:
    for version in ("1", "2"):
        promote("reviews", version, "better", "gate")
    delete("version", api)
    back = rollback("reviews", "it is gone", "anna")
    assert back.reason == "it is gone (the champion after version 1 was deleted in MLflow)"
    assert api.get_model_version("reviews", "1").description.startswith("Champion again on ")


def test_only_version_that_was_judged_tells_of_a_deleted_champion(api: Any) -> None:
    promote("reviews", "2", "better", "gate")
    keep("reviews", "3", "no gain", "gate")
    delete("version", api)
    with pytest.raises(InputError, match=LOST.format("version 2")):
        registry.check_champion("reviews", registry.registered_versions("reviews"))


# --- two at once ------------------------------------------------------------------------------------------------------


def test_promotion_against_another_champion_than_the_one_compared_with_is_refused(api: Any) -> None:
    promote("reviews", "1", "the first model", "first", expected=None)
    promote("reviews", "2", "better", "gate", expected="1")
    for expected, named in (("1", "version 1"), (None, "no version")):
        with pytest.raises(Overtaken, match=f"version 2 has become champion since the comparison with {named}"):
            promote("reviews", "3", "better", "gate", expected=expected)
    assert aliases(api) == {"champion": "2", "previous": "1"}
    assert len(decisions("reviews")) == 2


def test_of_two_threads_with_the_same_champion_in_mind_one_wins(api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    ready, ends = threading.Barrier(2), dict[str, str]()

    def run(version: str) -> None:
        ready.wait()
        try:
            ends[version] = promote("reviews", version, "better", "gate", expected="1").action
        except Overtaken as error:
            ends[version] = str(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_one_won(api, ends)


def check_one_won(api: Any, ends: dict[str, str]) -> None:
    (winner,) = (version for version, end in ends.items() if end == "promoted")
    (loser,) = ends.keys() - {winner}
    assert f"version {winner} has become champion since the comparison with version 1" in ends[loser]
    assert aliases(api) == {"champion": winner, "previous": "1"}
    assert [decision.version for decision in decisions("reviews")] == ["1", winner]
    assert "decision" not in api.get_model_version("reviews", loser).tags


PROMOTE = """
import json, sys, time
from pathlib import Path
from tasks.base import environment
from tasks.registry.decisions import Overtaken, promote
import mlflow
version = sys.argv[1]
Path(f"ready-{version}").touch()
while not Path("go").exists():
    time.sleep(0.001)
try:
    end = promote("reviews", version, "better", "gate", expected="1").action
except Overtaken as error:
    end = str(error)
print(json.dumps(end))
"""


@pytest.mark.endurance
def test_of_two_processes_with_the_same_champion_in_mind_one_wins(api: Any, workplace: Path) -> None:
    promote("reviews", "1", "the first model", "first")
    processes = {
        version: subprocess.Popen(
            [sys.executable, "-c", PROMOTE, version],
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in ("2", "3")
    }
    while not all((workplace / f"ready-{version}").exists() for version in processes):
        assert all(process.poll() is None for process in processes.values())
    (workplace / "go").touch()
    check_one_won(api, {version: json.loads(process.communicate()[0]) for version, process in processes.items()})


# --- broken off -------------------------------------------------------------------------------------------------------

WRITES = ("set_registered_model_alias", "set_model_version_tag", "update_model_version")
PROMOTION = 2 + 5 + 1
"""Calls that change something in MLflow."""
ROLLBACK = 2 + 2 * (5 + 1)


def break_off(place: pytest.MonkeyPatch, done: int, error: BaseException) -> None:
    """Have MLflow do so many writing calls and no more; the last of them is done, and its answer lost."""
    from mlflow import MlflowClient

    calls = []

    def breaking(original: Any) -> Any:
        def write(*arguments: Any, **more: Any) -> Any:
            calls.append(original)
            answer = original(*arguments, **more) if len(calls) <= done else None
            if len(calls) >= done:
                raise error
            return answer

        return write

    for name in WRITES:
        place.setattr(MlflowClient, name, breaking(getattr(MlflowClient, name)))


def check_settled(api: Any, champion: str, previous: str, action: str) -> None:
    """The last decision is whole, once, and nothing waits any more."""
    last = decisions("reviews")[-1]
    assert (last.version, last.previous, last.action, last.reason) == (champion, previous, action, "on purpose")
    assert aliases(api) == {"champion": champion, "previous": previous}
    for version in decision.concerned(last):
        found = api.get_model_version("reviews", version)
        mine = [tag for tag, value in found.tags.items() if value == last.model_dump_json()]
        assert len(mine) == 1
        assert found.tags["decision"] == decision.outcome(last, version)
        assert found.tags["decision.reason"] == "on purpose"
        assert found.description.count("on purpose") == 1
    assert registry.notes("reviews") == []


@pytest.mark.parametrize("done", range(PROMOTION + 1))
def test_promotion_that_broke_off_after_any_call_is_completed_by_the_next_command(done: int, api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    with pytest.MonkeyPatch.context() as place, pytest.raises(RuntimeError, match=r"the server went.*next command"):
        break_off(place, done, ConnectionError("the server went"))
        promote("reviews", "2", "on purpose", "gate", expected="1")
    assert aliases(api)["champion"] in ("1", "2")
    settle("reviews")
    check_settled(api, "2", "1", "promoted")


@pytest.mark.parametrize("done", range(ROLLBACK + 1))
def test_rollback_that_was_stopped_after_any_call_is_completed_by_the_next_command(done: int, api: Any) -> None:
    for version in ("1", "2"):
        promote("reviews", version, "better", "gate")
    with pytest.MonkeyPatch.context() as place, pytest.raises(KeyboardInterrupt):
        break_off(place, done, KeyboardInterrupt())
        rollback("reviews", "on purpose", "anna")
    with pytest.raises(Overtaken, match="version 1 has become champion since the comparison with version 2"):
        promote("reviews", "3", "better", "gate", expected="2")
    check_settled(api, "1", "2", "rolled back")


def test_promotion_whose_process_was_killed_is_completed(api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    code = (
        "import os\nfrom mlflow import MlflowClient\nfrom tasks.registry import decisions\n"
        "MlflowClient.set_model_version_tag = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "decisions.promote('reviews', '2', 'on purpose', 'gate')"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9 and registry.notes("reviews")
    settle("reviews")
    check_settled(api, "2", "1", "promoted")


def test_broken_off_promotion_does_not_overrule_whoever_moved_the_alias_by_hand(api: Any) -> None:
    promote("reviews", "1", "the first model", "first")
    with pytest.MonkeyPatch.context() as place, pytest.raises(RuntimeError):
        break_off(place, 0, ConnectionError())
        promote("reviews", "2", "better", "gate")
    api.set_registered_model_alias("reviews", "champion", "3")
    settle("reviews")
    assert aliases(api) == {"champion": "3"}
    assert decisions("reviews")[-1].reason == "better (overtaken: version 3 was made champion before this was complete)"
    assert registry.notes("reviews") == []


def test_note_of_another_store_waits_for_that_store(api: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as place, pytest.raises(RuntimeError):
        break_off(place, 0, ConnectionError())
        promote("reviews", "2", "on purpose", "gate")
    other = register(workplace / "other", "reviews", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/other/mlruns/mlflow.db")
    settle("reviews")
    assert aliases(other) == {} and registry.notes("reviews")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    settle("reviews")
    assert aliases(api) == {"champion": "2"} and not registry.notes("reviews")


def test_refused_promotion_is_not_tried_again(api: Any) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    with pytest.MonkeyPatch.context() as place, pytest.raises(InputError, match="refuses access"):
        break_off(place, 0, MlflowException("no", PERMISSION_DENIED))
        promote("reviews", "2", "better", "gate")
    assert registry.notes("reviews") == [] and decisions("reviews") == []


def test_nothing_to_settle_asks_mlflow_nothing(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str) -> list[Any]:
        raise AssertionError("asked")

    monkeypatch.setattr(registry, "registered_versions", ask)
    settle("reviews")


def test_record_that_somebody_made_unreadable_hides_no_other(api: Any) -> None:
    keep("reviews", "1", "no evidence", "gate")
    api.set_model_version_tag("reviews", "1", "decision.1", "?")
    second = keep("reviews", "1", "still no evidence", "gate")
    assert api.get_model_version("reviews", "1").tags["decision.2"] == second.model_dump_json()
    assert decisions("reviews") == [second]
