"""Label rows with a trained adapter, chunk after chunk, so that a kill loses one chunk at most.

The same command finds its finished chunks in `mlruns/work`, and writes the same bytes as if nothing had happened.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task

from tasks.base.environment import hide_short_bars
from tasks.base.machine import environment_key
from tasks.base.outcomes import PredictionResult
from tasks.base.progress import amount, progress_artifact, tell, warn
from tasks.base.trouble import first_line, is_network_trouble
from tasks.base.work import sole_user
from tasks.inference.choice import apply
from tasks.inference.job import Job, parts_of
from tasks.inference.parts import Columns, Part, Parts, as_jsonl
from tasks.inference.rows import Row, formulas_in, kind_of_ids, notes_of, read_rows
from tasks.models import serving
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError

if TYPE_CHECKING:
    import numpy as np


CHUNK_ROWS = 4096
"""Input rows that are sorted by length together, and lost at most. Of 8,530 real reviews, batched by 64, 3 % is padding
then (counted in words); in chunks of 512 it was 17 %."""

LOG_SECONDS = 30


@task(name="predict", task_run_name="predict", description="Rows labelled, in chunks that a kill leaves whole")
def predict_rows(config: PredictionConfig, job: Job) -> PredictionResult:
    """The output, whole. Chunks that an earlier attempt has finished are taken as they are."""
    if not job.work:
        return predict_chunks(config, job, None)
    Path(job.work).mkdir(parents=True, exist_ok=True)
    with sole_user(job.work):
        parts = parts_of(config, job)
        if given := given_already(config, parts):
            tell("%s is there already and is this prediction's result", given.output)
            parts.clear()
            return given
        if not parts.again:
            parts.clear()
        return predict_chunks(config, job, parts)


def given_already(config: PredictionConfig, parts: Parts) -> PredictionResult | None:
    """The result, where the output is there, and nothing in it is what this command would stop at."""
    given = parts.given()
    return given if given and (config.on_error == "skip" or not given.rejected) else None


def predict_chunks(config: PredictionConfig, job: Job, parts: Parts | None) -> PredictionResult:
    for note in (*notes_of(config, job.source), *job.choice.told):
        tell("%s", note)
    total, count, foreign = Part(labels=dict.fromkeys(counted_labels(job), 0)), 0, 0
    labeller = Labeller(config, job, parts, kind_of_ids(config, job.source) if job.source else None)
    with progress_artifact("prediction") as show:
        progress = Progress(show)
        for count, chunk in enumerate(chunks(read_rows(config, job.source, job.columns)), 1):
            check_faults(config, job, chunk)
            done = parts.done(count - 1) if parts else None
            part = done or labeller.label(count - 1, chunk)
            foreign += part.rows * (part.environment != environment_key())
            total = total.plus(part)
            progress.tick(total.read, chunk[-1].share, worked=not done)
    if foreign:
        warn(
            "%s rows were labelled by a machine with another device, other packages or another number of threads than "
            "this one: the last of six digits may differ from what one process gives",
            f"{foreign:,}",
        )
    if not count:
        raise InputError(f"input: {config.input} has no rows")
    result = PredictionResult(
        output=str(parts.output.resolve()) if parts else "-",
        rows=total.rows,
        rejected=total.rejected,
        rejected_path=None,
        abstained=total.abstained,
        labels=total.labels,
        model_version=job.version,
        sha256=None,
    )
    return parts.publish(result, count, config.overwrite) if parts else result


def chunks(rows: Iterator[Row], size: int | None = None) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size or CHUNK_ROWS)):
        yield chunk


def check_faults(config: PredictionConfig, job: Job, chunk: Sequence[Row]) -> None:
    """Raises InputError that names the first row that cannot be used, unless such rows are to be skipped."""
    bad = next((row for row in chunk if row.fault), None)
    if bad and config.on_error == "stop":
        advice = "or set such rows aside with --on_error skip" if config.output != "-" else "then give all of it again"
        told = f"input: {config.input} row {bad.number} {bad.fault}; repair it, {advice}"
        raise InputError(". ".join((told, *formulas_in(config, job.source, job.columns))))


class Labeller:
    """Labels chunk after chunk; loads the model for the first."""

    def __init__(self, config: PredictionConfig, job: Job, parts: Parts | None, ids: str | None) -> None:
        self.config, self.job, self.parts, self.ids = config, job, parts, ids
        self.classifier: Classifier | None = None

    def label(self, number: int, chunk: Sequence[Row]) -> Part:
        self.ids = self.ids or ("string" if any(row.may_have_id for row in chunk) else None)
        if self.parts:
            self.parts.ids = self.ids
        self.classifier = self.classifier or load_classifier(self.config, self.job)
        columns = label(self.job, self.classifier, chunk, self.config.abstain_below, self.ids is not None)
        return write_chunk(self.job, self.parts, number, columns, chunk)


class Classifier(NamedTuple):
    model: Any
    tokenizer: Any
    settings: dict[str, Any]


def load_classifier(config: PredictionConfig, job: Job) -> Classifier:
    from safetensors import SafetensorError

    hide_short_bars()
    folder = Path(job.adapter)
    settings = serving.read_settings(folder) | {"batch_size": config.batch_size}
    if "thresholds" in settings:  # several labels, each with one
        pairs = zip(job.label_names, settings["thresholds"], strict=True)
        settings["thresholds"] = [job.choice.thresholds.get(name, usual) for name, usual in pairs]
    try:
        return Classifier(*serving.load_adapter(folder, job.base, local_files_only=config.offline), settings)
    except (serving.OtherWeights, serving.NeedsPackage) as error:
        raise InputError(f"model: {config.model}: {error}") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_network_trouble(error) and not config.offline:
            raise
        raise InputError(f"model: {config.model} cannot be read: {first_line(error)}") from error


def label(job: Job, classifier: Classifier, chunk: Sequence[Row], abstain_below: float, has_id: bool) -> Columns:
    """The output's columns for the rows of a chunk that can be used."""
    import numpy as np
    import pandas as pd

    rows = [row for row in chunk if not row.fault]
    texts = [[row.texts[place] for row in rows] for place in range(len(job.columns))]
    asked = pd.DataFrame(dict(zip(classifier.settings["text_columns"], texts, strict=True)))
    answers = serving.predict(*classifier, asked)
    numbers = [name for name, kind in job.answers.items() if kind == "number"]
    table = answers[numbers].to_numpy(np.float64)
    # the ends of an interval may be unknown
    finite = np.isfinite(table[:, [name not in ("low", "high") for name in numbers]]).all(1)
    if not finite.all():
        number = rows[int(np.argmin(finite))].number
        raise FloatingPointError(f"the model gives no finite answer for row {number}")
    columns: dict[str, list[Any]] = {str(name): answers[name].tolist() for name in answers}
    shown = shown_digits(table, job.answers)
    columns |= {
        name: [None if value != value else value for value in shown[:, place].tolist()]
        for place, name in enumerate(numbers)
    }
    abstained = [False] * len(rows)
    if "probability" in columns:
        columns |= apply(job.choice, list(job.label_names), shown[:, 1:])
        abstained = [probability < abstain_below for probability in columns["probability"]]
        columns["label"] = [
            None if unsure else found for unsure, found in zip(abstained, columns["label"], strict=True)
        ]
        abstained = [found is None for found in columns["label"]]
    return {
        "row": [row.number for row in rows],
        **({"id": [row.id for row in rows]} if has_id else {}),
        **dict(zip(job.columns, texts, strict=True)),
        **columns,
        "abstained": abstained,
        "model_version": [job.version] * len(rows),
    }


def shown_digits(table: "np.ndarray", answers: Mapping[str, str]) -> "np.ndarray":
    """Probabilities in six digits; numbers, which may be large or tiny, in seven that say something."""
    import numpy as np

    if "prediction" not in answers:
        return table.round(6)
    return np.asarray([[float(f"{value:.7g}") for value in row] for row in table.tolist()]).reshape(table.shape)


def counted_labels(job: Job) -> tuple[str, ...]:
    """Those of which it is said how many rows have them."""
    return () if "prediction" in job.answers else job.label_names


def write_chunk(job: Job, parts: Parts | None, number: int, columns: Columns, chunk: Sequence[Row]) -> Part:
    rejected = [{"row": row.number, "reason": row.fault, "given": row.given} for row in chunk if row.fault]
    given = columns.get("labels") or [[label] for label in columns.get("label", ())]
    counts = Counter(label for labels in given for label in labels)
    part = Part(
        read=len(chunk),
        rows=len(columns["row"]),
        rejected=len(rejected),
        abstained=sum(columns["abstained"]),
        labels={name: counts[name] for name in counted_labels(job)},
        environment=environment_key(),
    )
    if parts:
        return parts.write(number, columns, rejected, part)
    sys.stdout.buffer.write(as_jsonl(columns))
    sys.stdout.flush()
    return part


class Progress:
    """How far it is and how long it will take, in Prefect, and now and then in the log."""

    def __init__(self, show: Any) -> None:
        self.show = show
        self.started = self.told = time.monotonic()
        self.first: float | None = None
        """Share of the input where the work of this process began: what was done before says nothing of its speed."""

    def tick(self, rows: int, share: float | None, worked: bool) -> None:
        now, text = time.monotonic(), f"{rows:,} rows"
        if share is not None:
            if self.first is None or not worked:
                self.first, self.started = share, now
            elif share > self.first:
                left = (now - self.started) / (share - self.first) * (1 - share)
                text += f" ({100 * share:.0f} %), about {amount(left)} left"
        self.show(100 * (share or 0), text)
        if now - self.told >= LOG_SECONDS:
            self.told = now
            tell("%s", text)


def describe_result(result: PredictionResult) -> str:
    """`1,066 rows labelled by reviews/3: bad 530, good 530, 6 without a label; 2 set aside in X; written to Y`"""
    counts = [f"{name} {count:,}" for name, count in result.labels.items()]
    if result.abstained:
        counts.append(f"{result.abstained:,} without a label")
    aside = f"; {result.rejected:,} set aside in {result.rejected_path}" if result.rejected else ""
    where = "" if result.output == "-" else f"; written to {result.output}"
    told = f": {', '.join(counts)}" if counts else ""
    return f"{result.rows:,} rows labelled by {result.model_version}{told}{aside}{where}"
