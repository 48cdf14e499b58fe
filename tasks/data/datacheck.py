"""What is odd about the data, found before anything expensive: in the run's log, in Prefect and in MLflow."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks.base.files import write_text
from tasks.base.records import DataCheck, Place, PreparedData, SameText
from tasks.base.words import counted, listed, named_rows
from tasks.base.work import RunFolder
from tasks.data.datapage import check_page, tables_page
from tasks.data.duplicates import conflicts, describe_sharing, leaked_rows, repeated_rows
from tasks.data.labels import NOTHING, are_long_decimals, are_many_numbers, same_word, several_labels
from tasks.data.targets import labels_of
from tasks.scores.objective import objective
from tasks.scores.statistics import DISAGREEMENT, USEFUL_DIFFERENCE
from tasks.settings.config import RunConfig
from tasks.settings.fixed import SPLITS
from tasks.settings.sections import DataConfig
from tasks.sources.hub import NETWORK
from tasks.tracking import run as tracking

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from datasets import Dataset

    from tasks.data.splits import Splits


CHECK_FILE, PAGE_FILE = "data_check.json", "data_check.md"

MOST_TEXTS, MOST_PLACES, TEXT_CHARACTERS = 10_000, 100, 80
"""Shared texts that a record names, rows of each, and how much of the text: enough to repair a file by."""

BINS = 20
"""Of the histogram of token lengths, about."""

FEW_TEST_ROWS = 30
"""A class with fewer: its recall moves in steps of three points, and 95 % intervals of macro-F1 covered as little as
75 % of the cases with 9 rows."""

SHARE_DIFFERENCE, SHARE_P_VALUE = 0.05, 0.001
"""The classes are spread differently where the share of one differs by more, and not by chance (chi-square)."""

MEAN_DIFFERENCE = 0.2
"""Between the numbers of two splits, in standard deviations: a small effect, after Cohen (1988)."""

MUCH_TRUNCATED = 0.1
"""Share of the rows."""


@task(
    name="check data",
    task_run_name="check data",
    **NETWORK,
)
def check_data(config: RunConfig, data: PreparedData, work: str) -> DataCheck:
    """What `prepare` found and what the test rows can show, told everywhere."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.logging import get_run_logger

    logger, check = get_run_logger(), read_check(config, data)
    for warning in check.warnings:
        logger.warning("%s", warning)
    sentence = power_sentence(data, check, config)
    if sentence and not any(sentence in warning for warning in check.warnings):
        logger.info("%s", sentence)
    tables = (Path(data.folder) / PAGE_FILE).read_text(encoding="utf-8")
    page = check_page(config.data.name, check.warnings, sentence, tables)
    folder = RunFolder(work).data_check
    folder.mkdir(parents=True, exist_ok=True)
    check.write(folder / CHECK_FILE)
    write_text(folder / PAGE_FILE, page)
    tracking.log_files(work, "data_check", folder)
    create_markdown_artifact(page, key="data-check", description=next(iter(check.warnings), "nothing to warn of"))
    return check


def read_check(config: RunConfig, data: PreparedData) -> DataCheck:
    """The check of the prepared data, with what their test rows can show at this run's confidence."""
    check = DataCheck.model_validate_json((Path(data.folder) / CHECK_FILE).read_bytes())
    task = objective(data.task)
    detectable = task.detectable(data.rows("test"), config.evaluation.confidence)
    check, warnings = check.model_copy(update={"detectable": detectable}), list(check.warnings)
    if task.power_known and (detectable is None or detectable > USEFUL_DIFFERENCE):
        small = f"The test set is too small to say much: {power_sentence(data, check, config)}"
        warnings.insert(1 if check.leaked["test"] else 0, small)
    return check.model_copy(update={"warnings": tuple(warnings)})


def power_sentence(data: PreparedData, check: DataCheck, config: RunConfig) -> str:
    """What the test rows can show, in one sentence; nothing where nobody can say it before they are measured."""
    if not objective(data.task).power_known:
        return ""
    rows, confidence = counted(data.rows("test"), "test row"), f"{100 * config.evaluation.confidence:g} % confidence"
    if check.detectable is None:
        return f"{rows} can show no difference of accuracy with 80 % power ({confidence})"
    disagreement = f"{100 * max(DISAGREEMENT, check.detectable):.0f} %"
    return (
        f"{rows} show a difference of {100 * check.detectable:.1f} points of accuracy or more with 80 % power "
        f"({confidence}, assuming that the two classifiers disagree on {disagreement} of the rows)"
    )


def make_check(splits: "Splits", lengths: Mapping[str, "np.ndarray"], config: DataConfig) -> tuple[DataCheck, str]:
    """The check of these rows, and its tables as a page; `lengths` are tokens before truncation, by split.

    What the test rows can show is left open: it depends on settings that the prepared data do not.
    """
    import numpy as np

    rows, task = splits.same_texts, objective(splits.task)
    has = {role: task.indicator(labels_of(split), len(splits.label_names)) for role, split in splits.datasets.items()}
    counts = np.stack([has[role].sum(0) for role in SPLITS])
    names = splits.label_names if counts.size else ()
    sizes = np.asarray([len(splits.datasets[role]) for role in SPLITS])
    truncated = {split: int((tokens > config.max_length).sum()) for split, tokens in lengths.items()}
    near_empty = rows[rows["near_empty"]]
    edges = length_edges(lengths)
    check = DataCheck(
        same_texts=shared_texts(splits, config.text_columns),
        duplicates={split: len(repeated_rows(rows, split)) for split in SPLITS},
        leaked={split: tuple(leaked_rows(rows, split)["row"].tolist()) for split in ("validation", "test")},
        kept_out=splits.kept_out,
        near_empty=tuple(Place(split=row.split, row=row.row) for row in near_empty.itertuples()),
        max_length=config.max_length,
        truncated=truncated,
        lengths={split: histogram(tokens, edges) for split, tokens in lengths.items()},
        length_edges=tuple(edges),
        detectable=None,
        warnings=(
            *describe_sharing(rows, splits.label_words, task.conflict),
            *balance_warnings(counts, sizes, names),
            *twin_warnings(splits.datasets, has, names),
            *label_warnings(counts, names, task.one_class),
            *(drift_warnings(splits) if not names else ()),
            *near_empty_warnings(near_empty),
            *truncation_warnings(truncated, len(rows), config.max_length),
        ),
    )
    total = int(rows.loc[rows["text"].duplicated(keep=False), "text"].nunique())
    return check, tables_page(check, counts, sizes, names, lengths, total)


def shared_texts(splits: "Splits", text_columns: Sequence[str]) -> tuple[SameText, ...]:
    """Texts that several rows have: those in train and test first, then those with several labels.

    Of a text's places, the first in each split and with each label come first.
    """
    import numpy as np

    rows = splits.same_texts
    rows = rows[rows["text"].duplicated(keep=False)]
    has = {split: rows["text"].isin(rows.loc[rows["split"] == split, "text"]) for split in SPLITS}
    unclear = rows["text"].isin(conflicts(rows)["text"])
    rank = np.select([has["train"] & has["test"], unclear, has["train"] & has["validation"]], [0, 1, 2], 3)
    first = rows.index.to_series().groupby(rows["text"]).transform("min")
    again = rows.duplicated(["text", "split", "label"])
    name = np.asarray(splits.label_words)[rows["label"]]
    rows = rows.assign(rank=rank, first=first, again=again, name=name)
    rows = rows.sort_values(["rank", "first", "again"], kind="stable")
    rows = rows[rows["first"].isin(rows["first"].unique()[:MOST_TEXTS])].groupby("text", sort=False).head(MOST_PLACES)
    found = []
    for _, group in groupby(rows.itertuples(), key=lambda row: row.text):
        members = list(group)
        text = splits.datasets[members[0].split][members[0].place]
        found.append(
            SameText(
                text=" / ".join(text[column] for column in text_columns)[:TEXT_CHARACTERS],
                places=tuple(Place(split=row.split, row=row.row) for row in members),
                labels=tuple(str(row.name) for row in members),
            )
        )
    return tuple(found)


def length_edges(lengths: Mapping[str, "np.ndarray"]) -> list[int]:
    """Edges of about BINS bins of equal width in tokens, from 0; few very long texts do not widen them."""
    import numpy as np

    every = np.concatenate(list(lengths.values()))
    top = min(int(every.max()), 2 * int(np.percentile(every, 99)))
    width = top // BINS + 1
    return list(range(0, top + width + 1, width))


def histogram(tokens: "np.ndarray", edges: Sequence[int]) -> tuple[int, ...]:
    """Texts in each bin; the last one holds longer ones too."""
    import numpy as np

    counts, _ = np.histogram(np.minimum(tokens, edges[-1] - 1), edges)
    return tuple(counts.tolist())


def balance_warnings(counts: "np.ndarray", sizes: "np.ndarray", names: Sequence[str]) -> list[str]:
    """Splits whose classes are spread differently than in train. `counts` (3, classes) and rows (3,), in the order of
    SPLITS."""
    import numpy as np
    from scipy.stats import chi2_contingency

    warnings = []
    for place, split in enumerate(SPLITS[1:] if names else (), 1):
        shares, train = counts[place] / sizes[place], counts[0] / sizes[0]
        worst = int(abs(shares - train).argmax())
        pair = counts[[0, place]]
        if (pair.sum(1) != sizes[[0, place]]).any():  # several labels: each by itself, and the worst is asked
            pair = np.stack([pair[:, worst], sizes[[0, place]] - pair[:, worst]], axis=1)
        chance = chi2_contingency(pair[:, pair.sum(0) > 0]).pvalue
        if abs(shares - train)[worst] > SHARE_DIFFERENCE and chance < SHARE_P_VALUE:
            warnings.append(
                f"The classes are spread differently in train and {split}: {names[worst]!r} has "
                f"{100 * train[worst]:.1f} % of the train rows and {100 * shares[worst]:.1f} % of the {split} rows"
            )
    return warnings


def drift_warnings(splits: "Splits") -> list[str]:
    """Splits whose numbers are others than those of train: Kolmogorov-Smirnov, and further apart than rounding."""
    from scipy.stats import ks_2samp

    warnings, train = [], labels_of(splits.datasets["train"])
    for split in SPLITS[1:]:
        part = labels_of(splits.datasets[split])
        apart = abs(part.mean() - train.mean())
        if apart > MEAN_DIFFERENCE * train.std() and ks_2samp(part, train).pvalue < SHARE_P_VALUE:
            warnings.append(
                f"The numbers are spread differently in train and {split}: their mean is {train.mean():.4g} in train "
                f"and {part.mean():.4g} in {split}"
            )
    return warnings


def label_warnings(counts: "np.ndarray", names: Sequence[str], one_class: bool = True) -> list[str]:
    """Classes that may be several in one or none at all, that are missing somewhere, or that have few test rows."""
    warnings = []
    if not names:
        return []
    if one_class and (
        several := several_labels([name for name, rows in zip(names, counts.sum(0), strict=True) if rows])
    ):
        warnings.append(
            f"{several[0].upper()}{several[1:]}, each combination a class of its own; for several labels set data.task "
            "to multi_label"
        )
    if one_class and (are_many_numbers(names) or are_long_decimals(names)):
        warnings.append(
            f"The labels are {len(names)} numbers, each taken for a class of its own; if they are a number to predict, "
            "set data.task to regression"
        )
    if nothing := [repr(name) for name in names if name.lower() in NOTHING]:
        warnings.append(f"The label {listed(nothing)} is taken for a class; remove such rows if they are not labelled")
    present = counts > 0
    if never := [repr(name) for name, there in zip(names, present.T, strict=True) if not there.any()]:
        warnings.append(f"No row has the label {listed(never)}")
    for split, there in zip(SPLITS, present, strict=True):
        if only := [repr(names[i]) for i in (there & (present.sum(0) == 1)).nonzero()[0]]:
            warnings.append(f"Only rows of {split} have the label {listed(only)}")
    few = [
        f"{name!r} {count}"
        for name, count, there in zip(names, counts[-1], present.T, strict=True)
        if count < FEW_TEST_ROWS and there.any()
    ]
    if few:
        have = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        warnings.append(f"{have} under {FEW_TEST_ROWS} test rows ({listed(few)}); their own scores say little")
    return warnings


def twin_warnings(splits: "Mapping[str, Dataset]", has: "Mapping[str, np.ndarray]", names: Sequence[str]) -> list[str]:
    """Classes that may be one and the same, with their rows; which of them each row `has`, masks (rows, classes)."""
    import numpy as np

    alike: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        if any(part[:, label].any() for part in has.values()):
            alike.setdefault(same_word(name), []).append(label)

    def rows_with(label: int) -> str:
        places = {role: np.flatnonzero(has[role][:, label]) for role in SPLITS if role in has}
        role = next(role for role, found in places.items() if len(found))
        first = splits[role][int(places[role][0])]["row"]
        return f"{counted(sum(map(len, places.values())), 'row')}, such as {role} row {first}"

    warnings = []
    for same in alike.values():
        if len(same) > 1:
            named = [f"{names[label]!r} ({rows_with(label)})" for label in same]
            warnings.append(
                f"The labels {' and '.join(named)} are different classes and differ only in case, spaces, hyphens, "
                "zeros before a number or Unicode form; write them alike if they mean the same"
            )
    return warnings


def near_empty_warnings(rows: "pd.DataFrame") -> list[str]:
    if rows.empty:
        return []
    where = [named_rows(split, rows.loc[rows["split"] == split, "row"].tolist()) for split in SPLITS]
    named = "; ".join(place for split, place in zip(SPLITS, where, strict=True) if (rows["split"] == split).any())
    have = "has" if len(rows) == 1 else "have"
    return [f"{counted(len(rows), 'row')} {have} fewer than three letters or digits ({named})"]


def truncation_warnings(truncated: Mapping[str, int], rows: int, max_length: int) -> list[str]:
    cut = sum(truncated.values())
    if cut <= MUCH_TRUNCATED * rows:
        return []
    return [
        f"{100 * cut / rows:.1f} % of the rows are longer than data.max_length ({max_length} tokens) and lose their end"
    ]
