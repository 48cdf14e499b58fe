"""What the commands about a trained model at work do: label rows, watch it, write it for other programs."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from flows.actions import DONE, overrides, prefect_starting, say_wait
from flows.summary import listing, where_to_browse
from tasks.settings.config import MonitorConfig, PredictionConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import load_config

if TYPE_CHECKING:
    from tasks.base.outcomes import MonitorResult, PredictionResult


PREDICTION_IMPORTS = ("transformers.modeling_utils", "peft", "pandas")
"""While Prefect's server does its own."""


def run_predict(options: Namespace) -> int:
    config = load_config(overrides=overrides(options), kind=PredictionConfig)
    say_wait()

    from tasks.base import environment
    from tasks.inference.job import job_of, look

    with environment.without_collection(), TemporaryDirectory() as folder:
        found = look(config, Path(folder))  # most that the user must change is said before Prefect starts
        with prefect_starting():
            job_of(config, found)
            from flows.predict import predict
            from tasks.inference.prediction import describe_result

            for name in PREDICTION_IMPORTS:
                import_module(name)

    result: PredictionResult = predict(**dict(config))
    print(describe_result(result), file=sys.stderr if options.json or config.output == "-" else sys.stdout)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_monitor(options: Namespace) -> int:
    config = load_config(overrides=overrides(options), kind=MonitorConfig)
    say_wait()

    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.monitoring.watched import find_watched

    with TemporaryDirectory() as folder:
        find_watched(config, Path(folder))  # what the user must change is said before Prefect starts
    with prefect_starting():
        from flows.monitor import monitor
        from tasks.monitoring.page import monitor_text
        from tasks.tracking.opening import make_store

        make_store()
    result: MonitorResult = monitor(**dict(config))
    stream = sys.stderr if options.json else sys.stdout
    print(f"\n{monitor_text(result)}\n\n{listing(where_to_browse(result.run_id))}", file=stream)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_export(options: Namespace) -> int:
    if not (options.merged or options.onnx):
        raise InputError("say what to write: --merged, --onnx or both")

    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.inference.export import describe_export, export

    print(
        describe_export(export(options.model, options.folder, options.merged, options.onnx, options.trust_remote_code))
    )
    return DONE
