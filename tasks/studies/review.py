"""Training and validation rows of a run whose label a person should look at, as a file to fill in.

Test rows are left out: a test label that is corrected only where the model disagrees raises the model's score.
"""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.files import write_text
from tasks.base.records import PreparedData, Record
from tasks.base.words import counted
from tasks.base.work import WORK
from tasks.data.corrections import ids_of, recorded_outcomes
from tasks.data.prepare import prepare
from tasks.data.splits import stratified_rows
from tasks.evaluation.references import PROBE_GRID, pooled_features
from tasks.scores.classes import suspected_classes
from tasks.scores.linear import logistic
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.sources.columns import array
from tasks.sources.reading import CORRECTION_COLUMNS
from tasks.studies.rerun import recall
from tasks.tracking.address import run_url
from tasks.tracking.asking import fetched
from tasks.tracking.listing import SHORT, find_run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from datasets import Dataset


MOST_ROWS = 20_000
"""Of train, each of which two models read: MiniLM reads about 300 short texts a second on two cores."""

FOLDS = 5

CONFIDENT = 0.8
"""From this probability of another label on, the adapter's mistake is a confident one."""

LABEL_ERROR, MISTAKE, BEFORE = "likely label error", "confident mistake", "looked at before"

OURS = ("id", "split", "row", "given_label", "model_label", "model_probability", "reason", "corrected_label")
"""Columns of the file besides the texts."""


class Review(Record):
    """What `peft-flow review --json` prints."""

    run_id: str
    file: str
    rows: dict[str, int]
    """Looked at, by split."""
    listed: int
    label_errors: int
    """Of those listed."""
    mistakes: int
    """The same; a row can be both."""
    before: int
    """Corrections that the run was trained with, which stand at the end of the file."""
    label_names: tuple[str, ...]
    url: str
    """Of the run's page."""


class Opinion(NamedTuple):
    """What a classifier that has not learned from these rows, and the adapter, say about the labels of a split."""

    labels: "np.ndarray"
    """(rows,), as given."""
    unseen: "np.ndarray"
    """Probabilities (rows, classes) of what has not learned from the row; NaN where there is nobody to ask."""
    adapter: "np.ndarray"
    """The same of the adapter."""


def review(asked: str, file: Path, most: int, anyway: bool = False) -> Review:
    """Write at most so many rows of a run into `file`, those whose label is most likely wrong first.

    InputError for what is not a finished run of ours, for a task without classes, and, unless `anyway`, where data or
    model are no longer as they were.
    """
    if file.suffix != ".csv" or not file.absolute().parent.is_dir():
        raise InputError(f"FILE.csv must be a file NAME.csv in a folder that is there, not {str(file)!r:.80}")
    if file.exists():
        raise InputError(f"{file} is there already, and may be filled in; give another name, or remove it")
    run_id = find_run(asked)
    config = recall(run_id, anyway)
    data = prepare(config, WORK)
    if not objective(data.task).one_class:
        raise InputError(f"review is for rows with one class each; run {run_id} is for {data.task}")
    rows = reviewed_rows(config, data)
    found = worth_a_look(config, data, rows, opinions(run_id, config, data, rows))
    before = looked_at(config, data, rows)
    listed = found[~found["id"].isin(before["id"])].head(most)
    text = written(config, data, listed, before)
    # with a mark at its start: Excel takes a csv without it for Windows-1252
    write_text(file, "\ufeff" + text)
    return Review(
        run_id=run_id,
        file=str(file),
        rows={split: len(part) for split, part in rows.items()},
        listed=len(listed),
        label_errors=int(listed["reason"].str.contains(LABEL_ERROR).sum()),
        mistakes=int(listed["reason"].str.contains(MISTAKE).sum()),
        before=len(before),
        label_names=data.label_names,
        url=run_url(run_id),
    )


def reviewed_rows(config: RunConfig, data: PreparedData) -> "dict[str, Dataset]":
    """Rows of train, at most MOST_ROWS, and of validation."""
    from datasets import load_from_disk

    splits = load_from_disk(data.folder)
    labels, most = array(splits["train"], "labels"), min(MOST_ROWS, len(splits["train"]))
    train = splits["train"].select(stratified_rows(labels, len(data.label_names), most, config.data.split_seed))
    return {"train": train, "validation": splits["validation"]}


def opinions(run_id: str, config: RunConfig, data: PreparedData, rows: "dict[str, Dataset]") -> dict[str, Opinion]:
    """By split. Validation rows are judged by the adapter, which has not learned from them, and train rows by a linear
    probe of the frozen foundation model in cross-validation."""
    adapter = ask_adapter(run_id, config, data, rows)
    labels = {split: array(part, "labels") for split, part in rows.items()}
    (features,) = pooled_features(config, data, {"train": rows["train"]})
    probe = out_of_fold(features, labels["train"], len(data.label_names), config.data.split_seed)
    return {
        "train": Opinion(labels["train"], probe, adapter["train"]),
        "validation": Opinion(labels["validation"], adapter["validation"], adapter["validation"]),
    }


def ask_adapter(
    run_id: str, config: RunConfig, data: PreparedData, rows: "dict[str, Dataset]"
) -> "dict[str, np.ndarray]":
    """Probabilities (rows, classes) by split."""
    from tasks.models import serving

    with TemporaryDirectory() as folder:
        adapter = fetched(run_id, "adapter", Path(folder))
        settings = serving.read_settings(adapter)
        try:
            model, tokenizer = serving.load_adapter(adapter, local_files_only=config.offline)
        except (serving.OtherWeights, serving.NeedsPackage) as error:
            raise InputError(f"run {run_id}: {error}") from error
    tables = {}
    for split, part in rows.items():
        logits = serving.classify(model, tokenizer, serving.model_rows(part, tokenizer), config.evaluation.batch_size)
        table = serving.answers(logits, settings)
        tables[split] = objective(data.task).among(table, settings["label_names"], data.label_names)
    return tables


def out_of_fold(features: "np.ndarray", labels: "np.ndarray", classes: int, seed: int) -> "np.ndarray":
    """Probabilities (rows, classes) for each row by logistic regression of `features` that has not learned from it.

    NaN for rows of a class that no other fold has.
    """
    import numpy as np
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    table = np.full((len(labels), classes), np.nan)
    scaled, folds = StandardScaler().fit_transform(features), min(FOLDS, int(np.bincount(labels).max()))
    kind = StratifiedKFold if np.bincount(labels)[np.unique(labels)].min() >= folds else KFold  # the first would warn
    for known, asked in kind(folds, shuffle=True, random_state=seed).split(scaled, labels) if folds > 1 else ():
        (table[asked],) = logistic(scaled[known], labels[known], [scaled[asked]], classes, PROBE_GRID, seed)
        table[asked[~np.isin(labels[asked], labels[known])]] = np.nan
    return table


def worth_a_look(
    config: RunConfig, data: PreparedData, rows: "dict[str, Dataset]", found: dict[str, Opinion]
) -> "pd.DataFrame":
    """Likely label errors and confident mistakes, a line for each text; those first for whose label the two classifiers
    see the least, on average, beside the label that they find likely."""
    import pandas as pd

    parts = [suspects(config, data.label_names, split, rows[split], found[split]) for split in rows]
    frame = pd.concat(parts, ignore_index=True).sort_values("margin", ascending=False, kind="stable")
    return frame.drop_duplicates("id")


def suspects(
    config: RunConfig, names: tuple[str, ...], split: str, rows: "Dataset", opinion: Opinion
) -> "pd.DataFrame":
    """Likely label errors by confident learning, see tasks/scores/classes.py, and confident mistakes of the adapter."""
    import numpy as np
    import pandas as pd

    labels, unseen, adapter = opinion
    place, known, said = np.arange(len(labels)), ~np.isnan(unseen[:, 0]), adapter.argmax(1)
    likely = labels.copy()
    if known.any():
        likely[known] = suspected_classes(unseen[known], labels[known])
    margins = np.stack([unseen[place, likely] - unseen[place, labels], adapter[place, said] - adapter[place, labels]])
    is_error = known & (likely != labels) & (margins[0] > 0)
    is_mistake = (said != labels) & (adapter[place, said] >= CONFIDENT)
    reasons = [
        why(
            (names[likely[row]], unseen[row, likely[row]]) if is_error[row] else None,
            (names[said[row]], adapter[row, said[row]]) if is_mistake[row] else None,
            "the adapter" if split == "validation" else "a linear probe",
        )
        for row in place
    ]
    frame = pd.DataFrame(
        {
            "id": ids_of(rows, config.data),
            "split": split,
            "row": array(rows, "row"),
            **text_values(config, rows),
            "given_label": [names[label] for label in labels],
            "model_label": [names[label] for label in said],
            "model_probability": adapter[place, said].astype(float).round(3),
            "reason": reasons,
            "margin": np.nanmean(margins, axis=0),
        }
    )
    return frame[is_error | is_mistake]


def why(error: tuple[str, float] | None, mistake: tuple[str, float] | None, who: str) -> str:
    """What speaks against a label: what else is said, and how probable it is; `who` has not learned from the row."""
    told = [f"{LABEL_ERROR}: {who}, not trained on this row, gives {error[0]} {error[1]:.2f}"] if error else []
    told += [f"{MISTAKE}: the adapter gives {mistake[0]} {mistake[1]:.2f}"] if mistake else []
    return "; ".join(told)


def text_values(config: RunConfig, rows: "Dataset") -> dict[str, Any]:
    """The columns of the file with the texts: a name that is one of OURS is not theirs alone."""
    return {f"{name} (text)" if name in OURS else name: rows[name][:] for name in config.data.text_columns}


def looked_at(config: RunConfig, data: PreparedData, rows: "dict[str, Dataset]") -> "pd.DataFrame":
    """The corrections that the run was trained with: a file with the next ones alone would take these back."""
    import pandas as pd

    corrections = recorded_outcomes(data)[[*CORRECTION_COLUMNS]]
    texts = [
        pd.DataFrame(
            {"id": ids_of(part, config.data), "split": split, "row": array(part, "row"), **text_values(config, part)}
        )
        for split, part in rows.items()
    ]
    known = pd.concat(texts, ignore_index=True).drop_duplicates("id")
    return corrections.merge(known, on="id", how="left").assign(reason=BEFORE)


def written(config: RunConfig, data: PreparedData, listed: "pd.DataFrame", before: "pd.DataFrame") -> str:
    """The csv, of which `corrected_label` is to be filled in."""
    import pandas as pd

    frame = pd.concat([part for part in (listed.assign(corrected_label=""), before) if len(part)] or [listed])
    columns = [name for name in frame if name not in (*OURS, "margin")]
    return str(
        frame.reindex(columns=[*OURS[:3], *columns, *OURS[3:]])
        .astype({"row": "Int64"})
        .to_csv(index=False, lineterminator="\n")
    )


def review_text(result: Review) -> str:
    """For a terminal: what was written, and what to do with it."""
    rows = " and ".join(f"{count:,} {split}" for split, count in result.rows.items())
    names = ", ".join(result.label_names[:10]) + (", ..." if len(result.label_names) > 10 else "")
    lines = [
        f"reviewed  {rows} rows of run {result.run_id[:SHORT]}",
        f"written   {result.file}: {counted(result.listed, 'row')}, {counted(result.label_errors, LABEL_ERROR)} and "
        f"{counted(result.mistakes, MISTAKE)}",
    ]
    if result.before:
        lines.append(f"          and {counted(result.before, 'correction')} of before at its end, which stay in force")
    lines += [
        f"to do     write a label into the column corrected_label ({names}): another one corrects, the same one",
        "          confirms, empty is not looked at",
        f"next      peft-flow retrain CONFIG.yaml --data.corrections {shlex.quote(result.file)}",
        "not here  test rows, whose labels stay as they are; their mistakes are in the tables of the run,",
        f"          {result.url}",
    ]
    return "\n".join(lines)
