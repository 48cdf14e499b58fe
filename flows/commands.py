"""The table of commands: from it come the parser, `--help`, docs/commands.md, and what is called."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows import actions, in_use, records
from tasks.settings.config import (
    LearningCurveConfig,
    MonitorConfig,
    PredictionConfig,
    RerunConfig,
    RetrainConfig,
    RunConfig,
    SweepConfig,
)
from tasks.settings.fields import Config
from tasks.settings.fixed import MOST_SEEDS
from tasks.settings.loading import sections
from tasks.settings.sections import DataConfig


def port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65_535:
        raise ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r:.80}")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise ArgumentTypeError(f"must be a whole number from 1 to 1,000,000, not {text!r:.80}")
    return int(text)


class Argument(NamedTuple):
    name: str
    """`--json` for an option; a place without a name otherwise."""
    help: str
    more: Mapping[str, Any] = {}
    """For argparse: metavar, type, default, action ..."""

    def shown(self) -> str:
        """`[--seeds SEEDS]`, `RUN`."""
        value = str(self.more.get("metavar") or self.name.lstrip("-").upper())
        if self.name.startswith("-"):
            is_flag = self.more.get("action") == "store_true"
            text = self.name if is_flag else f"{self.name} {value}{' ...' if self.more.get('action') else ''}"
            return text if self.more.get("required") else f"[{text}]"
        return f"[{value}]" if self.more.get("nargs") == "?" else value


class Command(NamedTuple):
    name: str
    help: str
    """What it does, in half a line."""
    description: str
    run: Callable[[Namespace], int]
    arguments: tuple[Argument, ...] = ()
    kind: type[Config] | None = None
    """Configuration whose fields are options of the command."""
    places: tuple[str, ...] = ()
    """Those of its fields that are given without a name."""
    flows: tuple[str, ...] = ()
    """What it runs, by the name that Prefect shows."""

    def usage(self) -> str:
        places = [name.upper() for name in self.places]
        places += [one.shown() for one in self.arguments if not one.name.startswith("-")]
        fields = [f"[--{'SECTION.' if any(sections(self.kind)) else ''}FIELD VALUE ...]"] if self.kind else []
        options = [one.shown() for one in self.arguments if one.name.startswith("-")]
        return " ".join(["peft-flow", self.name, *places, *fields, *options])


def flag(name: str, text: str) -> Argument:
    return Argument(name, text, {"action": "store_true"})


def field(kind: type[Config], name: str) -> str:
    return kind.model_fields[name].description or ""


CONFIG_FILE = Argument("config", "Configuration; see configs/.", {"nargs": "?", "type": Path, "metavar": "CONFIG.yaml"})
JSON_AT_END = flag("--json", "Print one JSON object as the last line of output.")
JSON_ALONE = flag("--json", "Print one JSON object instead of the tables.")
JSON_LIST = flag("--json", "Print a JSON list instead of the table.")
FILTER = Argument("--filter", "", {"action": "append", "default": [], "metavar": "TEXT"})
RUN = Argument("run", field(RerunConfig, "run_id"), {"metavar": "RUN"})
NAME = Argument("name", "Registered model, as tracking.registered_model named it.", {"metavar": "NAME"})
REASON = Argument("--reason", "Why, in one line; it is recorded.", {"required": True, "metavar": "TEXT"})

COMMANDS = (
    Command(
        "init",
        "write a configuration for your own data",
        "Look at a file, folder or data set, say which columns it takes for text and label and why, and write that as "
        "a configuration with comments.",
        actions.run_init,
        (
            Argument("data", field(DataConfig, "name"), {"metavar": "DATA"}),
            Argument(
                "config",
                "Configuration to write; without it DATA.yaml in this folder.",
                {"nargs": "?", "type": Path, "metavar": "CONFIG.yaml"},
            ),
        ),
    ),
    Command(
        "finetune",
        "train an adapter and compare it with its foundation model",
        "Train an adapter and compare it with its foundation model. Without CONFIG.yaml: the embedded demo, which "
        "needs no network. Options replace what the file says.",
        actions.run_finetune,
        (
            CONFIG_FILE,
            Argument(
                "--seeds",
                "Train once for each of this many seeds, from --seed on, and show how much the seed alone changes "
                f"(≥ 1, ≤ {MOST_SEEDS}; default 1).",
                {"metavar": "SEEDS", "default": "1"},
            ),
            flag(
                "--dry-run",
                "Do everything but train: check the data, measure the foundation model and the references (the run "
                "then finds them), and estimate steps, time, memory and disk.",
            ),
            JSON_AT_END,
        ),
        RunConfig,
        flows=("finetune", "finetune-seeds"),
    ),
    Command(
        "learning-curve",
        "train with ever more of the rows and say what twice as many would bring",
        "Train with 1/8, 1/4, 1/2 and all of the training rows, with each once for each of several seeds, and say what "
        "twice the rows would bring, or that it cannot be told. Validation and test rows stay the same; no model is "
        "registered.",
        actions.run_learning_curve,
        (CONFIG_FILE, JSON_AT_END),
        LearningCurveConfig,
        flows=("learning-curve",),
    ),
    Command(
        "sweep",
        "look for better values of some fields, and say what that really brought",
        "Train many trials with other values of the fields that SPACE.yaml names, pick the best by its validation "
        "score, and then train it and the configuration as given in full: test rows say whether tuning helped. After "
        "a kill the same command continues.",
        actions.run_sweep,
        (
            CONFIG_FILE,
            Argument(
                "--sweep",
                "What varies; see configs/sweeps/. Instead of --space.",
                {"type": Path, "metavar": "SPACE.yaml"},
            ),
            Argument(
                "--page", "Also write the page, and its pictures beside it.", {"type": Path, "metavar": "FILE.md"}
            ),
            JSON_AT_END,
        ),
        SweepConfig,
        flows=("sweep", "sweep-runner"),
    ),
    Command(
        "retrain",
        "train a challenger where there is something new, and promote it where it beats the champion",
        "If data, model or configuration differ from the champion's, train a challenger, and give it the alias "
        "champion of tracking.registered_model if it is shown to be better on the same test rows.",
        actions.run_retrain,
        (CONFIG_FILE, JSON_AT_END),
        RetrainConfig,
        flows=("retrain",),
    ),
    Command(
        "predict",
        "label the rows of a file with a trained adapter",
        "Label the rows of INPUT with a trained adapter: label, calibrated probability of each class, and the model's "
        "version, in the order of the input. After a kill the same command continues where it stopped.",
        in_use.run_predict,
        (JSON_AT_END,),
        PredictionConfig,
        ("model", "input", "output"),
        ("predict", "predict-shard"),
    ),
    Command(
        "monitor",
        "say whether what a registered model is asked and answers has drifted",
        "Compare recent inputs of a registered model, and its answers, with its training and test rows: features of "
        "the texts, lengths, labels given, confidence, abstentions, and accuracy where true labels came back. Drift "
        "that is found is an event for automations, and no failure.",
        in_use.run_monitor,
        (JSON_AT_END,),
        MonitorConfig,
        ("name",),
        flows=("monitor",),
    ),
    Command(
        "runs",
        "list the runs in MLflow",
        "List the runs in MLflow, the newest first: their ids, scores on the test rows, verdicts and names. Wherever a "
        "run is asked for, the first digits of its id are enough.",
        records.run_runs,
        (
            FILTER._replace(
                help="FIELD=VALUE, where FIELD is name, experiment, kind (run, seeds, learning curve, sweep, trial or "
                "prediction), status, verdict or a parameter such as adapter.method; or a word of name, id or verdict. "
                "All that are given must apply. Trials of sweeps, and what predictions in shards send from machine "
                "to machine, are listed only where kind is asked for."
            ),
            Argument(
                "--sort",
                "started (the default), seconds, score, or a field as above.",
                {"default": "started", "metavar": "FIELD"},
            ),
            Argument(
                "--limit", "Most runs that are shown (default 20).", {"type": count, "default": 20, "metavar": "N"}
            ),
            JSON_LIST,
        ),
    ),
    Command(
        "models",
        "list the registered models and their champions",
        "List the registered models, with the version that is champion, its score, and since when it is.",
        records.run_models,
        (
            FILTER._replace(help="A word of the name. All that are given must apply."),
            Argument(
                "--sort",
                "name (the default), registered (the newest version first) or score.",
                {"choices": ("name", "registered", "score"), "default": "name", "metavar": "FIELD"},
            ),
            JSON_LIST,
        ),
    ),
    Command(
        "compare",
        "test whether the adapters of two runs differ",
        "Test on the test rows that two runs share whether their adapters differ, second minus first, and show which "
        "settings differ.",
        records.run_compare,
        (RUN._replace(name="first"), RUN._replace(name="second", help="The other run."), JSON_ALONE),
    ),
    Command(
        "review",
        "write the rows whose label a person should look at into a file to fill in",
        "Write likely label errors and confident mistakes among the training and validation rows of a run into "
        "FILE.csv, the most likely first. Fill in its column corrected_label; the next retrain takes it with "
        "--data.corrections FILE.csv.",
        records.run_review,
        (
            RUN,
            Argument("file", "File to write.", {"type": Path, "metavar": "FILE.csv"}),
            Argument(
                "--limit", "Most rows that are written (default 100).", {"type": count, "default": 100, "metavar": "N"}
            ),
            flag("--anyway", field(RerunConfig, "anyway")),
            JSON_AT_END,
        ),
    ),
    Command(
        "promote",
        "make a version of a registered model its champion",
        "Make a version of a registered model its champion. The champion so far becomes `previous`.",
        records.run_promote,
        (NAME, Argument("version", "Number of the version, as history shows it.", {"metavar": "VERSION"}), REASON),
    ),
    Command(
        "rollback",
        "make the previous champion of a registered model champion again",
        "Make the previous champion of a registered model champion again. The champion so far becomes `previous`.",
        records.run_rollback,
        (NAME, REASON),
    ),
    Command(
        "history",
        "show every version of a registered model, and who promoted it and why",
        "Show every version of a registered model, and who promoted it and why.",
        records.run_history,
        (
            NAME,
            JSON_ALONE,
            Argument("--picture", "Also draw it into this file.", {"type": Path, "metavar": "FILE.png"}),
        ),
    ),
    Command(
        "rerun",
        "do a recorded run again and say whether the same comes out",
        "Do a finished run again from its record in MLflow, as a new run that is linked to it, and say whether it is "
        "bit-identical, equal within noise, or different, and then what differs.",
        actions.run_rerun,
        (RUN, flag("--anyway", field(RerunConfig, "anyway")), JSON_AT_END),
        flows=("rerun",),
    ),
    Command(
        "export",
        "write a model that runs without peft-flow",
        "Write a model that runs without peft and peft-flow into a new folder, once a fresh process has found that its "
        "logits are those of the adapter.",
        in_use.run_export,
        (
            Argument("model", field(PredictionConfig, "model"), {"metavar": "MODEL"}),
            Argument("folder", "New folder to write.", {"type": Path, "metavar": "OUTPUT_FOLDER"}),
            flag("--merged", "A plain transformers model, with the adapter merged in."),
            flag("--onnx", "model.onnx, for ONNX Runtime; needs peft-flow[onnx]."),
            flag("--trust_remote_code", field(PredictionConfig, "trust_remote_code")),
        ),
    ),
    Command(
        "join",
        "have this machine train with another one, in one run",
        "Have processes of this machine take part in the training of a run with training.machines, whose address "
        "training.rendezvous is. Model and data are found here, at the same names or paths, and must be the same. It "
        "waits until the run trains, and ends with it: docs/operations.md.",
        actions.run_join,
        (
            Argument("address", "HOST:PORT, as training.rendezvous.", {"metavar": "HOST:PORT"}),
            flag("--trust_remote_code", field(PredictionConfig, "trust_remote_code")),
        ),
    ),
    Command(
        "completion",
        "print what completes commands and options in a shell",
        "Print what completes commands and options at the press of Tab. For bash: peft-flow completion bash > "
        "~/.local/share/bash-completion/completions/peft-flow. For zsh: into a file _peft-flow in a folder of fpath.",
        actions.run_completion,
        (Argument("shell", "bash or zsh.", {"choices": ("bash", "zsh"), "metavar": "SHELL"}),),
    ),
    Command(
        "up",
        "start Prefect, MLflow, the deployments and a worker",
        "Start the Prefect server, the MLflow server over mlruns/, the deployments of prefect.yaml and a worker; say "
        "where to click, then one line for each thing that happens. Ctrl-C stops everything.",
        actions.run_up,
        (
            Argument(
                "--host",
                "IP address to listen at (default 127.0.0.1: this machine only). 0.0.0.0 lets other machines in, which "
                "needs passwords: docs/operations.md.",
                {"default": "127.0.0.1"},
            ),
            Argument(
                "--prefect-port",
                "Of the Prefect server (default 4200).",
                {"type": port, "default": 4200, "metavar": "PORT"},
            ),
            Argument(
                "--mlflow-port",
                "Of the MLflow server (default 5000).",
                {"type": port, "default": 5000, "metavar": "PORT"},
            ),
            Argument(
                "--database",
                "PostgreSQL database in which both servers keep what they know, postgresql://USER@HOST/NAME, with the "
                "password in PGPASSWORD; else in files of this machine.",
                {"metavar": "ADDRESS"},
            ),
        ),
    ),
    Command(
        "worker",
        "have this machine take runs of servers that are elsewhere",
        "Take runs, and trials of sweeps, of the servers that peft-flow up has started on another machine. It needs "
        "nothing but their addresses, and their passwords in the environment: docs/operations.md. All that it leaves "
        "lies in mlruns/ of the current folder, which may be any. Ctrl-C stops it.",
        actions.run_worker,
        (
            Argument(
                "--prefect",
                "Address of the Prefect server, http://HOST:4200.",
                {"metavar": "ADDRESS", "required": True},
            ),
            Argument(
                "--mlflow", "Address of the MLflow server, http://HOST:5000.", {"metavar": "ADDRESS", "required": True}
            ),
            Argument(
                "--limit",
                "Most runs at a time, and most trials of sweeps (default: one run for each GPU or one; as many trials "
                "as GPUs or processor cores).",
                {"type": count, "metavar": "NUMBER"},
            ),
        ),
    ),
)
