"""Recent rows beside those that the model was made with: both read, looked at, tested."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task

from tasks.base.outcomes import DriftTest, MonitorResult
from tasks.base.progress import tell
from tasks.base.records import Interval
from tasks.base.words import counted
from tasks.base.work import RunFolder
from tasks.data.tokens import encode_texts
from tasks.evaluation.predictions import read_predictions
from tasks.evaluation.references import pool_of
from tasks.inference.rows import Row
from tasks.models import foundation as models
from tasks.models import serving
from tasks.monitoring.looks import (
    LEAST_ROWS,
    Look,
    Texts,
    Unsure,
    judge,
    look_at_score,
    looks_at_answers,
    looks_at_texts,
)
from tasks.monitoring.page import verdict_of, write_page
from tasks.monitoring.plots import draw_all
from tasks.monitoring.recent import answer, decided, draw_rows, rows_sentences, true_labels
from tasks.monitoring.watched import Watched, keys_of, learned_keys, tested_rows, training_rows, truth_columns
from tasks.scores.drift import View, strangeness
from tasks.scores.objective import objective
from tasks.scores.statistics import primary_interval
from tasks.settings.config import MonitorConfig
from tasks.sources.hub import NETWORK

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


KNOWN_ROWS = 2_000
"""Of the model's own rows, drawn: with 1,000 recent ones, all of a million would show hardly smaller drifts."""

MOST_COPIES = 0.05
"""Where more of the model's own rows have the text of another, copies belong to what it is asked; else they are a row
that was sent again, which says nothing new."""

STRANGEST = 5


class Known(NamedTuple):
    """The rows that the model was made with."""

    texts: "pd.DataFrame"
    """Drawn from training and test."""
    told: str
    """How many of which, in words."""
    table: "np.ndarray"
    """Answers about test rows, (rows, columns)."""
    labels: "np.ndarray"
    """Of these, (rows, ...)."""
    learned: set[int]
    """Keys of the texts that it has learned from."""
    copies: float
    """Share of its rows with the text of an earlier one."""
    notes: list[str]


def known_rows(config: MonitorConfig, watched: Watched) -> Known:
    import numpy as np
    import pandas as pd

    test, (train, missing), learned = tested_rows(watched), training_rows(watched), learned_keys(watched)
    parts = {"training": train, "test": test} if train is not None else {"test": test}
    texts = pd.concat(parts.values(), ignore_index=True)
    kinds = np.repeat(list(parts), [len(part) for part in parts.values()])
    keys = np.asarray(keys_of(texts))
    if train is not None:
        learned |= set(keys[kinds == "training"].tolist())
    chosen = draw(len(texts), KNOWN_ROWS, config.seed)
    told = " and ".join(counted(int((kinds[chosen] == kind).sum()), f"{kind} row") for kind in parts)
    _, labels, table = read_predictions(watched.answers)
    fresh = np.flatnonzero([key not in learned for key in keys[kinds == "test"]])
    fresh = fresh[draw(len(fresh), KNOWN_ROWS, config.seed)]
    outputs = table[fresh, : len(watched.job.label_names)].astype(float)
    return Known(
        texts=texts.iloc[chosen],
        told=told,
        table=decided(outputs, watched),
        labels=labels[fresh],
        learned=learned,
        copies=1 - len(np.unique(keys)) / len(keys),
        notes=[missing] if missing else [],
    )


def draw(rows: int, most: int, seed: int) -> "np.ndarray":
    """Places of at most so many of the rows, in their order."""
    import numpy as np

    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


@task(
    name="examine",
    task_run_name="examine",
    **NETWORK,
    description="Recent rows and those that the model was made with: read, answered, tested",
)
def examine(config: MonitorConfig, watched: Watched, run_id: str, work: str) -> MonitorResult:
    """What the tests say of the recent rows, with page and pictures in `work`."""
    from tasks.data.duplicates import stable_keys

    started = time.monotonic()
    known = known_rows(config, watched)
    each_once = known.copies <= MOST_COPIES
    drawn = draw_rows(config, watched, known.learned, each_once)
    tell("%s of %s and %s are compared", counted(len(drawn.rows), "recent row"), watched.job.version, known.told)
    learned = [key in known.learned for key in stable_keys(columns_of(drawn.rows))]
    new = [row for row, is_known in zip(drawn.rows, learned, strict=True) if not is_known]
    looks, notes = [], [*known.notes, *rows_sentences(config, drawn, each_once)]
    if any(learned):
        notes.append(
            f"{sum(learned):,} of the {len(drawn.rows):,} rows have a text that the model has learned from: what it "
            "answers them says nothing about new ones, and only their texts are compared."
        )
    if len(drawn.rows) >= LEAST_ROWS:
        looks += looks_at_texts(*texts_of(config, watched, drawn.rows, known))
    said = Said(config, watched, known, new, drawn.labelled)
    looks += said.looks
    tests = judge(looks, config.confidence, config.seed)
    result = MonitorResult(
        run_id=run_id,
        name=watched.name,
        version=watched.version,
        verdict=verdict_of(tests, len(drawn.rows)),
        inputs=config.inputs,
        compared_with=known.told,
        drifted=tuple(test.name for test in tests if test.found),
        confidence=config.confidence,
        tests=tuple(tests),
        task=watched.task,
        rows=drawn.read,
        examined=len(drawn.rows),
        copies=drawn.copies,
        learned=sum(learned),
        rejected=drawn.rejected,
        predicted=said.predicted,
        labelled=said.labelled,
        score=said.score,
        test_score=said.test_score,
        label_shares=said.shares,
        strangest=strangest(looks, tests, drawn.rows),
        notes=(*notes, *said.notes),
        seconds=round(time.monotonic() - started, 3),
    )
    folder = RunFolder(work)
    for part in (folder.plots, folder.staged):  # of the same monitoring before, which may have had other pictures
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    draw_all(folder.plots, result, {look.name: look.view for look in looks})
    write_page(folder, result)
    return result


def columns_of(rows: Sequence[Row]) -> list[list[str]]:
    return [list(column) for column in zip(*(row.texts for row in rows), strict=True)]


def texts_of(config: MonitorConfig, watched: Watched, rows: Sequence[Row], known: Known) -> tuple[Texts, Texts]:
    """Recent and known."""
    import numpy as np

    own = watched.config
    source = models.find_model(own)
    tokenizer = models.load_tokenizer(source, own.model)
    batches = own.model_copy(update={"evaluation": own.evaluation.model_copy(update={"batch_size": config.batch_size})})
    pool = pool_of(batches, source, watched.job.label_names, tokenizer)

    def look(columns: list[list[str]]) -> Texts:
        encoded: dict[str, Any] = encode_texts(columns, tokenizer, own.data)
        return Texts(pool(encoded), np.asarray(encoded["full_length"]))

    return look(columns_of(rows)), look([known.texts[name].tolist() for name in watched.text_columns])


class Said:
    """What the model answers recent rows, beside what it answered its test rows, and how often it is right."""

    def __init__(
        self,
        config: MonitorConfig,
        watched: Watched,
        known: Known,
        rows: Sequence[Row],
        labelled: Sequence[Row],
    ) -> None:
        import numpy as np

        self.task, self.confidence, self.known = objective(watched.task), config.confidence, known
        self.looks: list[Look] = []
        self.notes: list[str] = []
        self.test_score = primary_interval(self.task, known.table, known.labels, config.confidence)
        self.score: Interval | None = None
        self.shares: dict[str, tuple[float, float]] = {}
        self.labelled = self.predicted = 0
        every = list({row.number: row for row in (*rows, *labelled)}.values())
        if not every:
            return
        table, self.predicted = answer(config, watched, every)
        place = {row.number: i for i, row in enumerate(every)}
        said, wanted = (table[[place[row.number] for row in group]] for group in (rows, labelled))
        if enough(len(rows), len(known.table), self.notes):
            settings = serving.read_settings(Path(watched.job.adapter))
            unsure = Unsure(config.abstain_below, settings.get("surprise"))
            names = watched.job.label_names
            self.looks += looks_at_answers(self.task, said, known.table, len(names), unsure)
            self.shares = self.shares_of(said, names)
        if len(labelled):
            labels, is_ours = true_labels(labelled, truth_columns(config, watched), watched)
            if not is_ours.all():
                count = int((~np.asarray(is_ours)).sum())
                self.notes.append(f"{counted(count, 'true label')} of the inputs are none of the model's: left out.")
            self.judge_labels(wanted[is_ours], labels[is_ours])

    def shares_of(self, said: "np.ndarray", names: Sequence[str]) -> dict[str, tuple[float, float]]:
        groups = (self.task.indicator(self.task.decide(table), len(names)) for table in (said, self.known.table))
        recent, known = (group.mean(0).tolist() for group in groups)
        return dict(zip(names, zip(recent, known, strict=True), strict=True)) if recent else {}

    def judge_labels(self, table: "np.ndarray", labels: "np.ndarray") -> None:
        self.labelled = len(labels)
        if not self.labelled:
            return
        self.score = primary_interval(self.task, table, labels, self.confidence)
        if self.labelled < LEAST_ROWS or len(self.known.table) < LEAST_ROWS:
            self.notes.append(
                f"{counted(self.labelled, 'row')} with a true label are too few for a test: it takes {LEAST_ROWS}."
            )
            return
        errors = (self.task.errors(table, labels), self.task.errors(self.known.table, self.known.labels))
        self.looks.append(look_at_score(self.task, *errors, (self.score, self.test_score)))


def enough(recent: int, known: int, notes: list[str]) -> bool:
    """Whether there are rows enough to compare the answers; else `notes` say so."""
    for count, what in ((recent, "recent row that the model has not learned from"), (known, "test row")):
        if count < LEAST_ROWS:
            notes.append(
                f"Answers are not compared: there are {count:,} rows of the kind '{what}', and {LEAST_ROWS} are needed."
            )
            return False
    return True


def strangest(looks: Sequence[Look], tests: Sequence[DriftTest], rows: Sequence[Row]) -> tuple[str, ...]:
    view: View | None = next(
        (look.view for look, test in zip(looks, tests, strict=True) if test.found and test.name == "features"), None
    )
    if view is None:
        return ()
    places = strangeness(view).argsort(kind="stable")[::-1][:STRANGEST]
    return tuple(" / ".join(rows[place].texts) for place in places)
