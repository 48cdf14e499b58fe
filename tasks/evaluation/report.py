"""What a comparison leaves on disk: the page that people read, and tables for programs and for MLflow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.files import write_text
from tasks.base.records import Comparison, Interval, PreparedData, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.words import bounds, markdown_table, plain, short_p, shown_share
from tasks.evaluation import error_analysis
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.wording import caution, headline, ladder_table, leak_sentence, step_sentence, title_of
from tasks.evaluation.zero_shot import question_note
from tasks.scores.conformal import COVERAGE, PROMISE, coverage, expected_words
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd


MOST_CLASSES_IN_A_MATRIX = 12

ROWS_SHOWN, TEXT_CHARACTERS = 10, 80
"""Of the tables of single rows on the page; the tables beside it hold more rows, and whole texts."""


def write_report(
    config: RunConfig, data: PreparedData, predictions: Predictions, trained: TrainedAdapter, result: Comparison
) -> None:
    """`comparison.json`, `comparison.md`, `classes.json`, and the tables that MLflow can show, in `result.folder`."""
    folder = Path(result.folder)
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    tables, shares = analysis_tables(data, predictions, trained, result), objective(data.task).metrics[0].is_share
    for name, frame in tables.items():
        if shares:  # how many digits other numbers need, only who knows them can say
            frame = frame.round({column: 4 for column in frame.select_dtypes(float) if column != "p_value"})
        write_text(folder / f"tables/{name}.json", frame.to_json(orient="split", index=False, double_precision=15))
    classes = class_report(data, predictions, trained, result.confidence)
    if classes:
        write_text(folder / "classes.json", json.dumps(classes, indent=1) + "\n")
    write_text(folder / "comparison.md", comparison_page(config, data, trained, result, classes, tables))
    result.write(folder / "comparison.json")


def analysis_tables(
    data: PreparedData, predictions: Predictions, trained: TrainedAdapter, result: Comparison
) -> "dict[str, pd.DataFrame]":
    """Frames for programs and for MLflow, with the same columns in every run on data of this shape."""
    test = error_analysis.read_test_rows(data, predictions)
    return {
        "ladder": ladder_frame(result),
        "slices": slice_frame(result),
        "flips": error_analysis.flips(data, test, predictions),
        "mistakes": error_analysis.mistakes(data, test, predictions),
        "label_errors": error_analysis.likely_label_errors(data, test, predictions, trained.fitted, result.confidence),
    }


def ladder_frame(result: Comparison) -> "pd.DataFrame":
    import pandas as pd

    first, *others = (metric.name for metric in objective(result.task).metrics)
    columns = ["classifier", first, f"{first}_low", f"{first}_high", *others]
    columns += ["adapter_gain", "gain_low", "gain_high", "p_value", "verdict"]
    rows = []
    for rung in result.ladder:
        own = (*low_and_high(rung.primary), *(rung.scores[name].value for name in others))
        gain = rung.adapter_gain
        lead = (*low_and_high(gain.primary), gain.p_value, gain.verdict) if gain else [None] * 5
        rows.append((title_of(result, rung.name), *own, *lead))
    return pd.DataFrame(rows, columns=columns)


def low_and_high(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def slice_frame(result: Comparison) -> "pd.DataFrame":
    import pandas as pd

    name = objective(result.task).metrics[0].name
    columns = ["kind", "slice", "rows", "small", f"baseline_{name}", name, f"{name}_low", f"{name}_high"]
    rows = [
        (
            *(part.kind, part.name, part.rows, part.small, part.baseline),
            *low_and_high(part.score),
            *(part.fixed, part.broken, part.p_value),
        )
        for part in result.slices
    ]
    return pd.DataFrame(rows, columns=[*columns, "fixed", "broken", "p_value"])


def class_report(
    data: PreparedData, predictions: Predictions, trained: TrainedAdapter, confidence: float
) -> dict[str, Any]:
    """Both classifiers by class or label, for programs: lists in the order of `label_names`, confusion as (true,
    predicted); of the adapter also the thresholds that it has for each, and what its prediction sets hold. Empty where
    there are none."""
    task = objective(data.task)
    found = {name: task.by_label(predictions.tables[name], predictions.labels) for name in ("baseline", "tuned")}
    if not found["tuned"]:
        return {}
    if "thresholds" in trained.fitted:
        found["tuned"]["threshold"] = trained.fitted["thresholds"]
    found["tuned"] |= task.sets_by_label(predictions.tables["tuned"], predictions.labels, trained.fitted, confidence)
    return {"label_names": list(data.label_names), **found}


def comparison_page(
    config: RunConfig,
    data: PreparedData,
    trained: TrainedAdapter,
    result: Comparison,
    classes: Mapping[str, Any],
    tables: "Mapping[str, pd.DataFrame]",
) -> str:
    """The whole comparison in markdown. What comes from the data cannot break out of its cell."""
    task, metric = objective(result.task), objective(result.task).metrics[0]
    note = f" {task.flip_note}" * bool(task.flip_note)
    parts = [
        f"# {capital(result.verdict)}: {config.run_name()}",
        headline(config, result),
        plain(caution(result.cautions)),
        step_sentence(result),
        "The foundation model's head is untrained: its scores are chance, not skill." if trained.fresh_modules else "",
        ladder_table(result),
        question_note(config, data, result.knew_before) if "zero_shot" in result.rivals else "",
        *(f"*{plain(capital(note))}.*" for note in data.notes),
        f"**Leakage**: {leak_sentence(result)}." if result.leaked else "",
        "## Slices of the test rows",
        slice_table(result),
        f"{capital(metric.title)}{metric.direction} before is that of the foundation model, after that of the "
        f"adapter. Slices of fewer than {error_analysis.SMALL} rows are marked as few: they say little. p is the "
        f"{task.test} test of each slice by itself; of twenty slices without any difference, one is expected under "
        f"0.05.{note}",
        "## Calibration",
        markdown_table(*task.calibration_table(result.calibration)),
        *flip_section(result, tables["flips"]),
        f"## {task.mistakes_title}",
        row_table(tables["mistakes"]) or task.no_mistake,
        "## Likely label errors",
        task.suspicion_note,
        row_table(tables["label_errors"]) or "None.",
        *class_section(task.label_word, classes),
        *set_section(task.label_word, classes, result),
        *confusion_section(classes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def slice_table(result: Comparison) -> str:
    metric = objective(result.task).metrics[0]
    rows = [
        (
            plain(part.kind),
            plain(part.name),
            f"{part.rows:,}{' (few)' * part.small}",
            metric.shown(part.baseline),
            metric.bounds(part.score),
            f"{part.fixed:,}",
            f"{part.broken:,}",
            short_p(part.p_value),
        )
        for part in result.slices
    ]
    header = ("by", "slice", "rows", "before", f"after ({100 * result.confidence:g} %)", "fixed", "broken", "p")
    return markdown_table(header, rows)


def flip_section(result: Comparison, flips: "pd.DataFrame") -> list[str]:
    """Half of the rows shown are fixed ones, half broken ones: mostly there are far more of the first."""
    task = objective(result.task)
    parts = [
        "## Flips",
        f"Tuning {task.flip_words(result.gain.fixed, result.gain.broken)}. {task.flip_order}; rows count from 0 in the "
        "source of the test split.",
    ]
    for kind in ("fixed", "broken"):
        parts.append(row_table(flips[flips["flip"] == kind].head(ROWS_SHOWN // 2)))
    return parts


COLUMN_TITLES = {
    "true_label": "label",
    "given_label": "label",
    "baseline_label": "before",
    "baseline_probability": "probability",
    "tuned_label": "after",
    "tuned_probability": "probability",
    "true_number": "number",
    "given_number": "number",
    "baseline_number": "before",
    "baseline_error": "error",
    "tuned_number": "after",
    "tuned_error": "error",
}


def row_table(frame: "pd.DataFrame") -> str:
    """The first rows of a table of single test rows, with shortened texts; nothing where there are none."""
    if frame.empty:
        return ""
    shares = [name.endswith("probability") for name in frame.columns]
    lines = frame.head(ROWS_SHOWN).itertuples(index=False)
    rows = [[cell(*pair) for pair in zip(line, shares, strict=True)] for line in lines]
    return markdown_table([COLUMN_TITLES.get(name, plain(name.replace("_", " "))) for name in frame.columns], rows)


def cell(value: object, is_share: bool) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
        return plain(text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…")
    if isinstance(value, float):
        return shown_share(value) if is_share else f"{value:.4g}"
    return str(value)


MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
    "threshold": "threshold",
}
"""What a class report can have of each class, and what people call it."""


def class_section(word: str, classes: Mapping[str, Any]) -> list[str]:
    """A table with what is known of each class before and after; nothing where there are no classes."""
    if not classes:
        return []
    sides = {side: classes[name] for side, name in (("before", "baseline"), ("after", "tuned"))}
    columns = [
        (f"{MEASURES[name]} {side}", found[name]) for side, found in sides.items() for name in MEASURES if name in found
    ]
    header = (word, "rows", *(title for title, _ in columns))
    return [f"## By {word}", markdown_table(header, class_rows(classes, [values for _, values in columns]))]


def class_rows(classes: Mapping[str, Any], columns: Sequence[Sequence[float]]) -> list[tuple[str, ...]]:
    names, rows = classes["label_names"], classes["tuned"]["rows"]
    return [
        (plain(name), f"{rows[i]}", *(shown_share(column[i]) for column in columns)) for i, name in enumerate(names)
    ]


def set_section(word: str, classes: Mapping[str, Any], result: Comparison) -> list[str]:
    """What the prediction sets are worth for each class; nothing where there are none."""
    if "coverage" not in classes.get("tuned", {}):
        return []
    names, found = classes["label_names"], classes["tuned"]
    rows = []
    for i, name in enumerate(names):
        one = {key: found[key][i] for key in ("coverage", "coverage_low", "coverage_high", "set_size")}
        told = ("", "") if one["coverage"] is None else (bounds(coverage(one)), f"{one['set_size']:.2f}")
        rows.append((plain(name), f"{found['rows'][i]}", *told))
    header = (word, "rows", f"in their set ({100 * result.confidence:g} %)", f"{word} in a set, on average")
    return [
        "## Prediction sets",
        f"With `predict --coverage {COVERAGE:g}` each row gets a set that should hold its {word} in {PROMISE} of the "
        f"cases, by the validation rows. Of all test rows the sets hold {bounds(coverage(result.calibration))}; "
        f"{expected_words(result.calibration)} was to be expected from so many validation rows. It is promised for all "
        f"rows together, and not for those of each {word}:",
        markdown_table(header, rows),
    ]


def confusion_section(classes: Mapping[str, Any]) -> list[str]:
    if "confusion" not in classes.get("tuned", {}) or len(classes["label_names"]) > MOST_CLASSES_IN_A_MATRIX:
        return []
    names = classes["label_names"]
    parts = ["## Confusion matrices", "Rows are the true class, columns the predicted one."]
    for title, name in (("before", "baseline"), ("after", "tuned")):
        counts = classes[name]["confusion"]
        rows = [(plain(name), *(str(count) for count in counts[i])) for i, name in enumerate(names)]
        parts.append(markdown_table((title, *map(plain, names)), rows))
    return parts
