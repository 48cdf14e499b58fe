import logging

import pytest

from tasks.base import environment, machine
from tasks.settings.fields import InputError


def shown(name: str, level: int, message: str, error: Exception | None = None) -> str | None:
    """What of a log line people see."""
    problem = (type(error), error, None) if error else None
    record = logging.LogRecord(name, level, "file.py", 1, message, None, problem)
    return record.getMessage() if environment.Story().filter(record) else None


@pytest.mark.parametrize(
    "message",
    ["Finished in state Completed()", "Beginning flow run 'x' for flow 'y'", "View at http://127.0.0.1:4200/"],
)
def test_log_leaves_out_what_the_page_shows_already(message: str) -> None:
    assert shown("prefect.flow_runs", logging.INFO, message) is None


def test_what_a_run_found_stays() -> None:
    assert shown("prefect.flow_runs", logging.INFO, "Foundation model: accuracy 0.507")
    assert shown("prefect.task_runs", logging.ERROR, "Task run failed with exception: ValueError()")


def test_what_the_user_must_change_is_one_line() -> None:
    error = InputError("model.name: no such model")
    assert shown("prefect.task_runs", logging.ERROR, "Task run failed with ...", error) == "model.name: no such model"


def test_failure_begins_with_what_failed_and_what_to_do() -> None:
    text = "Task run failed with exception: ValueError('broken') - Retries are exhausted"
    first = shown("prefect.task_runs", logging.ERROR, text, ValueError("broken"))
    assert first and first.startswith("ValueError: broken. Run it again;")


def test_no_error_is_reported_twice() -> None:
    story, error = environment.Story(), ValueError("broken")
    record = logging.LogRecord("prefect.task_runs", logging.ERROR, "f", 1, "broken", None, (ValueError, error, None))
    assert story.filter(record) and not story.filter(record)


def test_stopped_run_says_so_once_and_says_what_to_do() -> None:
    message = "Crash detected! Execution was aborted by a termination signal."
    assert shown("prefect.task_runs", logging.ERROR, message) is None
    assert shown("prefect.flow_runs", logging.ERROR, message) == (
        "The run was told to stop. Run it again and it goes on from its last checkpoint"
    )


def test_environment_says_all_that_bits_hang_on() -> None:
    import torch

    from tasks.base.machine import code_key

    *facts, first = machine.describe_environment().splitlines()[:6]
    assert [fact.split()[1] for fact in facts] == ["python", "system", "device", "cpu", "code"]
    assert facts[2].endswith(f", {torch.get_num_threads()} threads") and facts[4] == f"# code {code_key()}"
    assert machine.cpu_name() in facts[3] and len(machine.cpu_name()) > 2
    assert "==" in first
