"""A sweep of 24 trials beside what people do today: one `finetune` after the other, and Ray Tune with Optuna.

    .venv/bin/python -m benchmarks.sweep [--parts finetune ray] [--rounds 3] [--share 4]

MiniLM on 1,000 rows of Rotten Tomatoes, one epoch; learning rate, r and seed vary, and all sides try the same values.
Each measurement is a process of its own, from its start, with full caches; the sides take turns.

`finetune`: the whole sweep (two trials at a time, the best and the given configuration in full, the page), against 24
`peft-flow finetune` of commit ac77f57, with the packages of today: `--share` of them are run in each round, evenly out
of the 24, half before the sweep and half after it, and count for all.

`ray`: the same sweep until its log says which trial is the best, against a script in which Tune tries the same values
in a plain function: Trainer and PEFT at their best settings, the same steps, validation accuracy in the end. Two at a
time, with one thread each. Ray is in no requirements:

    .venv/bin/pip install --no-deps --target /tmp/peft-flow-ray ray==2.60.0
"""

from tasks.base import environment  # isort: skip  (first: libraries read it when they are imported)

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from benchmarks.peers import has_bfloat16
from benchmarks.speed import PARTS, ROOT, check_out, write_rows

MODEL, ROWS = PARTS["minilm"].model, 1000
OLD = "ac77f57"
RAY = Path("/tmp/peft-flow-ray")
INSTALL_RAY = f"Ray is not there: .venv/bin/pip install --no-deps --target {RAY} ray==2.60.0"

SPACE = {
    "training": {"learning_rate": [5e-4, 1e-3, 2e-3, 4e-3]},
    "adapter": {"r": [4, 8, 16]},
    "seed": [0, 1],
}
VALUES = [
    {"learning_rate": rate, "r": r, "seed": seed}
    for rate, r, seed in itertools.product(SPACE["training"]["learning_rate"], SPACE["adapter"]["r"], SPACE["seed"])
]
GIVEN = {"learning_rate": 1e-3, "r": 8, "seed": 0}
VALUES.sort(key=lambda values: values != GIVEN)  # the configuration as given is the first trial
BATCH, EVAL_BATCH, LENGTH, AT_ONCE = 16, 64, 128, 2

PICKED = "is the best of"
"""In the sentence of the log after which the sweep does what Tune does not."""


class Place(NamedTuple):
    """A folder with the rows, the configuration and the space; programs run in it."""

    folder: Path
    rows: Path

    def write(self) -> None:
        job = {
            "model": {"name": MODEL},
            "data": {"name": str(self.rows), "max_length": LENGTH},
            "adapter": {"r": GIVEN["r"]},
            "training": {"epochs": 1, "batch_size": BATCH, "learning_rate": GIVEN["learning_rate"]},
            "seed": GIVEN["seed"],
        }
        for name, content in (("job", job), ("space", SPACE)):
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def watched(command: Sequence[str], folder: Path, code: Path, words: str = "") -> tuple[float, float]:
    """Seconds until the process says `words`, and until it ends; the modules are those of `code`."""
    paths = os.environ | {"PYTHONPATH": f"{code}{os.pathsep}{RAY}", "PREFECT_HOME": str(folder / "prefect")}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        began, said, lines = time.perf_counter(), math.nan, []
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=work, env=paths, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout
        for line in process.stdout:
            lines.append(line.decode(errors="replace"))
            if words and words in lines[-1] and math.isnan(said):
                said = time.perf_counter() - began
        code_of_exit, seconds = process.wait(), time.perf_counter() - began
    if code_of_exit or (words and math.isnan(said)):
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(lines)[-3000:]}")
    return said, seconds


def sweep(place: Place, trials: int) -> tuple[float, float]:
    """Seconds until the best trial is known, and until the end."""
    given = [str(place.folder / "job.yaml"), "--sweep", str(place.folder / "space.yaml"), "--trials", str(trials)]
    asked = ["--sampler", "grid", "--pruner", "none", "--parallel", str(AT_ONCE)]
    return watched(["flows.cli", "sweep", *given, *asked], place.folder, ROOT, PICKED)


def old_finetune(place: Place, values: dict[str, Any], code: Path) -> float:
    asked = ["--training.learning_rate", str(values["learning_rate"]), "--adapter.r", str(values["r"])]
    asked += ["--seed", str(values["seed"])]
    return watched(["flows.cli", "finetune", str(place.folder / "job.yaml"), *asked], place.folder, code)[1]


# --- Ray Tune ---------------------------------------------------------------------------------------------------------


def ray_tune(place: Place, trials: int) -> float:
    command = ["benchmarks.sweep", "--ray-tune", str(place.rows), "--trials", str(trials)]
    return watched(command, place.folder, ROOT)[1]


def tune_all(rows: str, trials: int) -> None:
    """The script that this is compared with."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    # an address of its own: else it joins whatever cluster runs on this machine
    ray.init(address="local", num_cpus=AT_ONCE, include_dashboard=False, log_to_driver=False)
    choices = {"learning_rate": SPACE["training"]["learning_rate"], "r": SPACE["adapter"]["r"], "seed": SPACE["seed"]}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_plainly, rows=rows), {"cpu": 1}),
        param_space={name: tune.choice(values) for name, values in choices.items()},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=AT_ONCE,
            search_alg=OptunaSearch(points_to_evaluate=VALUES[:trials]),
            reuse_actors=True,  # a process that has imported everything takes the next trial
        ),
        run_config=tune.RunConfig(storage_path=str(Path.cwd() / "ray"), verbose=0),
    )
    results = tuner.fit()
    tried = sorted(tuple(result.config[name] for name in VALUES[0]) for result in results)
    assert not results.errors and tried == sorted(tuple(values.values()) for values in VALUES[:trials]), "other trials"
    print(f"best of {len(results)}: {results.get_best_result().metrics['accuracy']:.3f}")


def train_plainly(values: dict[str, Any], rows: str) -> None:
    """One trial as in the examples of Ray, transformers and PEFT."""
    import numpy as np
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from ray import tune
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(values["seed"])
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    splits = load_dataset("csv", data_files={split: f"{rows}/{split}.csv" for split in ("train", "validation")})
    splits = splits.map(lambda part: tokenizer(part["text"], truncation=True, max_length=LENGTH), batched=True)
    splits = splits.rename_column("label", "labels").remove_columns("text")
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=values["r"], lora_alpha=16))
    arguments = TrainingArguments(
        output_dir="out",
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=EVAL_BATCH,
        learning_rate=values["learning_rate"],
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        bf16=has_bfloat16(),
        seed=values["seed"],
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())},
    )
    trainer.train()
    tune.report({"accuracy": next(one["eval_accuracy"] for one in trainer.state.log_history if "eval_accuracy" in one)})


# --- in turns ---------------------------------------------------------------------------------------------------------


def rounds(parts: Sequence[str], count: int, trials: int, share: int, folder: Path) -> Iterator[tuple[str, float]]:
    """Names of what was measured, and seconds."""
    place = Place(folder, write_rows(folder / "rows", ROWS, None))
    place.write()
    code = check_out(OLD, folder / "old")
    sweep(place, 2)  # fills caches, Prefect's database too
    if "finetune" in parts:
        old_finetune(place, VALUES[0], code)
    for turn in range(count):
        chosen = [VALUES[number * trials // share] for number in range(share)] if "finetune" in parts else []
        for values in chosen[: share // 2]:
            yield "old", old_finetune(place, values, code)
        sides = ["sweep", *(["ray"] if "ray" in parts else [])]
        for side in sides[:: 1 - 2 * (turn % 2)]:
            if side == "ray":
                yield "ray", ray_tune(place, trials)
            else:
                picked, whole = sweep(place, trials)
                yield "trials", picked
                yield "sweep", whole
        for values in chosen[share // 2 :]:
            yield "old", old_finetune(place, values, code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=["finetune", "ray"], default=["finetune", "ray"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=int, default=4, help="old runs in each round")
    parser.add_argument("--trials", type=int, default=len(VALUES), help="fewer, to try it")
    parser.add_argument("--ray-tune", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ray_tune:
        tune_all(options.ray_tune, options.trials)
        return
    parts = [part for part in options.parts if part != "ray" or (RAY / "ray").is_dir()]
    if parts != options.parts:
        print(INSTALL_RAY, flush=True)
    environment.hide_short_bars()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, took in rounds(parts, options.rounds, options.trials, options.share, Path(folder)):
            seconds.setdefault(name, []).append(took)
            print(f"{name:8} {took:8.1f} s", flush=True)
    middle = {name: median(found) for name, found in seconds.items()}
    if "old" in middle:
        alone = options.trials * middle["old"]
        print(
            f"sweep of {options.trials} trials {middle['sweep']:.0f} s, as many old runs {alone:.0f} s "
            f"({options.trials} times the median of {len(seconds['old'])}): {middle['sweep'] / alone:.3f} of the time"
        )
    if "ray" in middle:
        print(
            f"trials alone: ours {middle['trials']:.0f} s, Ray Tune {middle['ray']:.0f} s: "
            f"{middle['trials'] / middle['ray']:.3f} of the time"
        )


if __name__ == "__main__":
    main()
