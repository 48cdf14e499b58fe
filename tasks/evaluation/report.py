"""What a comparison leaves on disk: the page that people read, and tables for programs and for MLflow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.files import write_text
from tasks.base.records import Calibration, Comparison, Interval, PreparedData, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.words import counted, markdown_table, plain, short_p, shown_share
from tasks.evaluation import error_analysis
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import class_table, confusion
from tasks.evaluation.wording import caution, headline, ladder_table, leak_sentence, step_sentence
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.rivals import TITLES

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
    tables = analysis_tables(data, predictions, result)
    for name, frame in tables.items():
        rounded = frame.round({column: 4 for column in frame.select_dtypes(float) if column != "p_value"})
        write_text(folder / f"tables/{name}.json", rounded.to_json(orient="split", index=False, double_precision=15))
    write_text(folder / "classes.json", json.dumps(class_report(data.label_names, predictions), indent=1) + "\n")
    write_text(folder / "comparison.md", comparison_page(config, data, predictions, trained, result, tables))
    result.write(folder / "comparison.json")


def analysis_tables(data: PreparedData, predictions: Predictions, result: Comparison) -> "dict[str, pd.DataFrame]":
    """Frames for programs and for MLflow, with the same columns in every run on data of this shape."""
    test = error_analysis.read_test_rows(data, predictions)
    return {
        "ladder": ladder_frame(result),
        "slices": slice_frame(result),
        "flips": error_analysis.flips(data, test, predictions),
        "mistakes": error_analysis.confident_mistakes(data, test, predictions),
        "label_errors": error_analysis.likely_label_errors(data, test, predictions, result.confidence),
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
        rows.append((TITLES[rung.name], *own, *lead))
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


def class_report(names: Sequence[str], predictions: Predictions) -> dict[str, Any]:
    """Both classifiers by class, for programs: lists in the order of `label_names`, confusion as (true, predicted)."""
    report: dict[str, Any] = {"label_names": list(names)}
    for name in ("baseline", "tuned"):
        table = predictions.tables[name]
        precision, recall, f1, rows = class_table(predictions.labels, table).T.tolist()
        report[name] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "rows": [int(count) for count in rows],
            "confusion": confusion(predictions.labels, table).tolist(),
        }
    return report


def comparison_page(
    config: RunConfig,
    data: PreparedData,
    predictions: Predictions,
    trained: TrainedAdapter,
    result: Comparison,
    tables: "Mapping[str, pd.DataFrame]",
) -> str:
    """The whole comparison in markdown. What comes from the data cannot break out of its cell."""
    task = objective(result.task)
    parts = [
        f"# {capital(result.verdict)}: {config.run_name()}",
        headline(config, result),
        plain(caution(result.cautions)),
        step_sentence(result),
        "The foundation model's head is untrained: its scores are chance, not skill." if trained.fresh_modules else "",
        ladder_table(result),
        *(f"*{plain(capital(note))}.*" for note in data.notes),
        f"**Leakage**: {leak_sentence(result)}." if result.leaked else "",
        "## Slices of the test rows",
        slice_table(result),
        f"{capital(task.metrics[0].title)} before is that of the foundation model, after that of the adapter. Slices "
        f"of fewer than {error_analysis.SMALL} rows are marked as few: they say little. p is the {task.test} test of "
        "each slice by itself; of twenty slices without any difference, one is expected under 0.05.",
        "## Calibration",
        calibration_table(result.calibration),
        *flip_section(result, tables["flips"]),
        "## Most confident mistakes",
        row_table(tables["mistakes"]) or "The adapter has every test row right.",
        "## Likely label errors",
        "Rows for which the adapter finds another label more likely, by confident learning, and for which every "
        "trained reference that beats chance predicts that label too.",
        row_table(tables["label_errors"]) or "None.",
        "## By class",
        markdown_table(
            (
                "class",
                "rows",
                *(f"{name} {side}" for side in ("before", "after") for name in ("precision", "recall", "F1")),
            ),
            class_rows(data.label_names, predictions),
        ),
        *confusion_section(data.label_names, predictions),
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


def calibration_table(calibration: Calibration) -> str:
    rows = [
        ("as trained", "1", f"{calibration.error_before:.3f}", f"{calibration.log_loss_before:.3f}"),
        (
            "fitted on validation",
            f"{calibration.temperature:.3f}",
            f"{calibration.error_after:.3f}",
            f"{calibration.log_loss_after:.3f}",
        ),
    ]
    return markdown_table(("adapter", "temperature", "expected calibration error", "log loss (nats)"), rows)


def flip_section(result: Comparison, flips: "pd.DataFrame") -> list[str]:
    """Half of the rows shown are fixed ones, half broken ones: mostly there are far more of the first."""
    parts = [
        "## Flips",
        f"Tuning fixed {counted(result.gain.fixed, 'row')} and broke {result.gain.broken:,}. These are the adapter's "
        "most confident ones; rows count from 0 in the source of the test split.",
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
}


def row_table(frame: "pd.DataFrame") -> str:
    """The first rows of a table of single test rows, with shortened texts; nothing where there are none."""
    if frame.empty:
        return ""
    rows = [[cell(value) for value in line] for line in frame.head(ROWS_SHOWN).itertuples(index=False)]
    return markdown_table([COLUMN_TITLES.get(name, plain(name.replace("_", " "))) for name in frame.columns], rows)


def cell(value: object) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
        return plain(text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…")
    return shown_share(value) if isinstance(value, float) else str(value)


def class_rows(names: Sequence[str], predictions: Predictions) -> list[tuple[str, ...]]:
    before, after = (class_table(predictions.labels, predictions.tables[name]) for name in ("baseline", "tuned"))
    return [
        (plain(name), f"{int(before[i, 3])}", *(shown_share(v) for v in (*before[i, :3], *after[i, :3])))
        for i, name in enumerate(names)
    ]


def confusion_section(names: Sequence[str], predictions: Predictions) -> list[str]:
    if len(names) > MOST_CLASSES_IN_A_MATRIX:
        return []
    parts = ["## Confusion matrices", "Rows are the true class, columns the predicted one."]
    for title, name in (("before", "baseline"), ("after", "tuned")):
        counts = confusion(predictions.labels, predictions.tables[name])
        rows = [(plain(name), *(str(count) for count in counts[i])) for i, name in enumerate(names)]
        parts.append(markdown_table((title, *map(plain, names)), rows))
    return parts
