"""Defaults that libraries read from the environment when they are imported. Import this module before them."""

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from tasks.base.disk import describe, is_disk_full
from tasks.settings.fields import InputError
from tasks.settings.secrets import redact

DEFAULTS = {
    # nobody is told what our users do; without the first, Prefect also prints a traceback when offline
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # the newer of Prefect's two UIs asks amplitude.com for its settings
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # tasks/tracking/run.py asks again itself: what MLflow's client repeats on its own can arrive twice
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # the server inside the first run migrates its database, which took 15 s on a busy two-core machine
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; see the automation in tasks/servers/up.py
    # a run says what matters itself; libraries speak up for warnings
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "critical",  # what it logs as an error it raises as well
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password in the tracking address
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TOKENIZERS_PARALLELISM": "true",
    # a thread that waits for the others gives its core away after microseconds: beside other work on two cores, the
    # 5 ms of GNU's OpenMP made a training take six times as long (benchmarks/busy.py)
    "GOMP_SPINCOUNT": "1000",
    # nothing here is compiled; bitsandbytes, which peft imports if it is installed, would load the compiler for 1.7 s
    "TORCHDYNAMO_DISABLE": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    # what libraries start with `python -m` takes no module from the current folder, where users have their own
    "PYTHONSAFEPATH": "1",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# with this package bitsandbytes, which peft imports if it is installed, fetches compiled code from the Hub and runs it
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]

for message in (
    "fan_in_fan_out is set to False",  # peft corrects it for GPT-2 itself
    "`is_gradient_checkpointing` is deprecated",  # between peft and transformers
    "Specifying null_placement in SortOptions",  # between datasets and pyarrow
    "The following rank_pattern keys did not match",  # AdaLoRA's, which reloads exactly all the same
    ".*Inferred schema contains integer column",  # of the test rows' own columns, which are complete
    "The specified dataset source can be interpreted in multiple ways",  # twice the same one: mlflow registers it twice
):
    warnings.filterwarnings("ignore", message=message)

make_record = logging.getLogRecordFactory()


def record_without_secrets(*arguments: Any, **named: Any) -> logging.LogRecord:
    """What any library logs, without the secrets in it: Prefect and MLflow keep it where others can read it."""
    record = make_record(*arguments, **named)
    with contextlib.suppress(Exception):  # a message that does not fit its arguments is logging's to report
        message = record.getMessage()
        if (shown := redact(message)) != message:
            record.msg, record.args = shown, ()
    if record.exc_info and record.exc_info[1]:
        text = logging.Formatter().formatException(record.exc_info)
        if (shown := redact(text)) != text:
            record.exc_text = shown  # which handlers print in place of the exception
    return record


logging.setLogRecordFactory(record_without_secrets)


class Story(logging.Filter):
    """A run's log says what the run found; that its steps begin and end is on its page already.

    What the user must change is said in one line, a traceback through our code would only hide it; and no error is
    said twice, by its task and by the flow.
    """

    said: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and error is self.said:
            return False
        self.said = error or self.said
        if isinstance(error, InputError) or (isinstance(error, Exception) and is_disk_full(error)):
            record.msg = redact(str(error) if isinstance(error, InputError) else describe(error))
            record.args, record.exc_info, record.exc_text = (), None, None
        elif isinstance(error, Exception) and record.levelno >= logging.ERROR:
            advice = "Run it again; if that does not help, the traceback below says where it went wrong"
            record.msg, record.args = redact(f"{type(error).__name__}: {error}. {advice}"), ()
        message = record.getMessage()
        if message.startswith(STOPPED):
            record.msg, record.args = (
                "The run was told to stop. Run it again and it goes on from its last checkpoint",
                (),
            )
            return record.name.startswith("prefect.flow_runs")
        return not message.startswith(ROUTINE)


# MLflow logs an error of its database with its traceback, and raises it as well
logging.getLogger("mlflow.store.db.utils").addFilter(
    lambda record: not (record.exc_info and record.exc_info[1] and is_disk_full(record.exc_info[1]))
)

ROUTINE = ("Beginning ", "Finished in state ", "Created task run ", "View at ")

STOPPED = "Crash detected! Execution was aborted by"  # a termination signal, an interrupt signal

story = Story()

for name in ("prefect.flow_runs", "prefect.task_runs"):
    logger = logging.getLogger(name)
    logger.addFilter(story)
    logger.setLevel(logging.NOTSET)  # a worker of tasks/servers/up.py starts a run with less


def hide_short_bars() -> None:
    """No bars for what takes moments (reading weights, casting columns); downloads keep theirs."""
    import huggingface_hub.utils
    import transformers

    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # it is read when datasets is imported
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection: in what imports have made there is none to find, now or later, and looking takes long."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
