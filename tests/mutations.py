"""Thirty small faults of the kind a tired hand makes, spread over all wings: do the tests notice?

    python -m tests.mutations [--only N ...] [--all-tests]

Each fault is put into a copy of the repository, and the tests of `make test` that concern it are run there until one
fails; with --all-tests all others too, when these pass. The faults were chosen from the code alone, and only then the
tests that are asked first. Prints a markdown table, kept in docs/testing.md. About half an hour on two cores.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.conftest import ROOT, SHARED


class Fault(NamedTuple):
    wing: str
    words: str
    """What is wrong."""
    file: str
    """Below tasks/WING."""
    old: str
    new: str
    asked: str
    """Arguments for pytest: the tests that are asked first."""

    @property
    def path(self) -> str:
        return f"tasks/{self.wing}/{self.file}"

    def within(self, source: str) -> str:
        """`source` with the fault; ValueError where it is not the code that the fault was made for."""
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.path} has {count} times, not once: {self.old!r}")
        return source.replace(self.old, self.new)


FAULTS = (
    Fault(
        "base",
        "an accuracy just below 1 is shown as 1.000",
        "words.py",
        "value if value in (0, 1) else min(max(value, 0.001), 0.999)",
        "value",
        "tests/test_evaluation_comparison.py",
    ),
    Fault(
        "base",
        "the second of two identical runs says that it waits, and does not",
        "work.py",
        'waiting for it to finish")\n        lock.acquire()\n',
        'waiting for it to finish")\n',
        "tests/test_finetune_flow.py tests/test_tracking_run.py -k 'waits or waited'",
    ),
    Fault(
        "data",
        "classes that are numbers are sorted as words, 10 before 9",
        "labels.py",
        "sorted(names, key=numbers_first)",
        "sorted(names)",
        "tests/test_data_splits.py tests/test_data_labels.py",
    ),
    Fault(
        "data",
        "rows that are cut from train for a test stay in train too",
        "splits.py",
        'chosen["train"].select(rows), chosen["train"].select(left)',
        'chosen["train"].select(rows), chosen["train"]',
        "tests/test_data_splits.py -k 'cut or missing or share'",
    ),
    Fault(
        "evaluation",
        "the adapter's test score is that of the validation rows",
        "adapter.py",
        '["test"]\n    table = serving.answers(reloaded["test"]',
        '["validation"]\n    table = serving.answers(reloaded["test"]',
        "tests/test_evaluation_adapter.py tests/test_evaluation_references.py",
    ),
    Fault(
        "evaluation",
        "TF-IDF has seen the test texts",
        "references.py",
        "return [vectorizer.fit_transform(train), *map(vectorizer.transform, others)]",
        "vectorizer.fit([text for part in texts for text in part])\n    return [*map(vectorizer.transform, texts)]",
        "tests/test_evaluation_references.py",
    ),
    Fault(
        "evaluation",
        "the sign of the adapter's gain is turned",
        "verdict.py",
        '(names.index("tuned"), i)',
        '(i, names.index("tuned"))',
        "tests/test_evaluation_comparison.py",
    ),
    Fault(
        "inference",
        "the row numbers that `predict` writes are one too high",
        "prediction.py",
        '"row": [row.number for row in rows]',
        '"row": [row.number + 1 for row in rows]',
        "tests/test_predict.py -k 'order or skipped'",
    ),
    Fault(
        "inference",
        "`predict` goes on from the part after the one that is due",
        "prediction.py",
        "done = parts.done(count - 1)",
        "done = parts.done(count)",
        "tests/test_predict.py -k 'killed or bad_row or damaged'",
    ),
    Fault(
        "models",
        "the adapter is saved without its head",
        "adapter.py",
        "model.save_pretrained(staged, safe_serialization=True)",
        "model.save_pretrained(\n"
        "            staged,\n"
        "            safe_serialization=True,\n"
        '            state_dict={name: weight for name, weight in model.state_dict().items() if "lora_" in name},\n'
        "        )",
        "tests/test_evaluation_adapter.py tests/test_models_adapter.py",
    ),
    Fault(
        "models",
        "answers come in the order of the batches, not of the rows",
        "serving.py",
        "[torch.tensor(order).argsort()]",
        "[torch.tensor(order)]",
        "tests/test_models_serving.py",
    ),
    Fault(
        "models",
        "`offline` is not passed on when the foundation model is looked for",
        "foundation.py",
        "config.model.revision, config.offline)",
        "config.model.revision, offline=False)",
        "tests/test_bad_input.py tests/test_models_foundation.py tests/test_sources_hub.py -k offline",
    ),
    Fault(
        "monitoring",
        "of several tests at once each finds drift as if it were alone",
        "looks.py",
        "zip(looks, p_values, holm(p_values), strict=True)",
        "zip(looks, p_values, p_values, strict=True)",
        "tests/test_monitoring_looks.py",
    ),
    Fault(
        "registry",
        "the lock of a registered model is not taken",
        "decisions.py",
        'with FileLock((REGISTRY / f"{digest(name)}.lock").resolve()):',
        "with suppress(NoModel):",
        "tests/test_registry_decisions.py -k 'threads or processes'",
    ),
    Fault(
        "registry",
        "a rollback goes to the first champion, not to the one before",
        "decisions.py",
        "for version in reversed(earlier)",
        "for version in earlier",
        "tests/test_registry_decisions.py -k rollback",
    ),
    Fault(
        "retraining",
        "the gate compares the gain itself with the smallest one asked for, not its lower end",
        "gate.py",
        "min(task.metrics[0].sign * end for end in (gain.primary.low, gain.primary.high))",
        "task.metrics[0].sign * gain.primary.value",
        "tests/test_retraining_gate.py",
    ),
    Fault(
        "retraining",
        "a challenger that a person has declined is promoted",
        "challenger.py",
        "(judged.passed and (approval is None or approval.approved))",
        "judged.passed",
        "tests/test_retraining_approval.py tests/test_retraining_challenger.py",
    ),
    Fault(
        "scores",
        "the ends of the bootstrap interval are swapped",
        "statistics.py",
        "low, high = np.percentile(",
        "high, low = np.percentile(",
        "tests/test_scores_statistics.py",
    ),
    Fault(
        "scores",
        "the temperature is the inverse of what it should be",
        "statistics.py",
        "log_softmax(logits / np.exp(log_temperature)",
        "log_softmax(logits * np.exp(log_temperature)",
        "tests/test_scores_statistics.py",
    ),
    Fault(
        "servers",
        "the servers answer at every address of the machine",
        "up.py",
        'address = ["--host", options.host, "--port"]',
        'address = ["--host", "0.0.0.0", "--port"]',
        "tests/test_servers_up.py -k 'host or address or machine or links or door'",
    ),
    Fault(
        "servers",
        "an open door is allowed with one of its passwords missing",
        "doors.py",
        "if missing and not is_at_home(options)",
        "if len(missing) > 1 and not is_at_home(options)",
        "tests/test_servers_up.py -k 'password or door'",
    ),
    Fault(
        "settings",
        "of two secrets of which one begins like the other, the end of the longer is shown",
        "secrets.py",
        "if len(value) >= SHORTEST_VALUE), key=len, reverse=True)",
        "if len(value) >= SHORTEST_VALUE), key=len)",
        "tests/test_security.py -k 'secret or password or key'",
    ),
    Fault(
        "sources",
        "a file is known by its name and size, not by its content",
        "local.py",
        'total.update(hashlib.file_digest(opened, "sha256").digest())',
        "total.update(str(len(opened.read())).encode())",
        "tests/test_sources_hub.py tests/test_sources_kept.py",
    ),
    Fault(
        "sources",
        "of more than 500 files each five-hundredth is left out",
        "kept.py",
        "pieces[start : start + MOST_APART]",
        "pieces[start : start + MOST_APART - 1]",
        "tests/test_sources_kept.py",
    ),
    Fault(
        "studies",
        "a rerun registers its model as the first run did",
        "rerun.py",
        '            "registered_model": None,\n',
        "",
        "tests/test_studies_rerun.py -k registered",
    ),
    Fault(
        "tracking",
        "of a batch of journal lines one counts as sent: the others are sent twice",
        "sending.py",
        '"lines": sent.lines + len(batch)',
        '"lines": sent.lines + 1',
        "tests/test_tracking_journal.py tests/test_tracking_run.py -k 'sent or waits or delivered or arrive'",
    ),
    Fault(
        "tracking",
        "on a promotion the alias `previous` is not moved",
        "decision.py",
        "set_alias(decision.name, PREVIOUS, str(decision.previous))",
        "pass",
        "tests/test_registry_decisions.py -k 'promotion or rollback'",
    ),
    Fault(
        "training",
        "an interrupted training goes on one batch too far",
        "trainer.py",
        "return done, left * self.args.gradient_accumulation_steps",
        "return done, left * self.args.gradient_accumulation_steps + 1",
        "tests/test_training_resume.py",
    ),
    Fault(
        "training",
        "checkpoints are sorted by name: 9 counts as newer than 10",
        "checkpoint.py",
        "sorted(found, key=step_of, reverse=True)",
        "sorted(found, reverse=True)",
        "tests/test_training_resume.py -k 'step or checkpoint'",
    ),
    Fault(
        "training",
        "the weights of the last step are saved, not the best",
        "trainer.py",
        "self.best.step != self.state.global_step:",
        "self.best.step == self.state.global_step:",
        "tests/test_training_fit.py -k best",
    ),
)


def copied(place: Path) -> Path:
    """A copy of the tracked files, with ../shared beside it as here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    copy = place / "copy"
    for name in filter(None, listed.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    if SHARED.is_dir():
        (place / "shared").symlink_to(SHARED)
    return copy


def first_failure(copy: Path, tests: Sequence[str]) -> str | None:
    """Name of the first of these tests that fails in the copy; RuntimeError where they could not be run."""
    scratch = copy.with_name("tmp")
    scratch.mkdir(exist_ok=True)
    # the copy before the installed checkout, in the processes of tests too
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if failed := re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE):
        return failed[1].rpartition("::")[2].partition("[")[0]
    raise RuntimeError(
        f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )


def caught_by(fault: Fault, all_tests: bool) -> str | None:
    with TemporaryDirectory(prefix="fault-") as place:
        copy = copied(Path(place))
        path = copy / fault.path
        path.write_text(fault.within(path.read_text(encoding="utf-8")), encoding="utf-8")
        others = ["tests", "--ignore=tests/test_mutations.py"]  # which misses the code that was replaced
        return first_failure(copy, shlex.split(fault.asked)) or (first_failure(copy, others) if all_tests else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of faults, from 1")
    parser.add_argument("--all-tests", action="store_true", help="ask all tests where those asked first pass")
    options = parser.parse_args()
    print("| | fault | in | caught by |\n| --- | --- | --- | --- |", flush=True)
    for number in options.only or range(1, len(FAULTS) + 1):
        fault = FAULTS[number - 1]
        test = caught_by(fault, options.all_tests)
        print(f"| {number} | {fault.words} | {fault.path} | {f'`{test}`' if test else 'SURVIVED'} |", flush=True)


if __name__ == "__main__":
    main()
