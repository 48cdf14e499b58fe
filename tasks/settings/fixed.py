"""What no configuration changes: places, the names of splits, the kinds of files."""

from pathlib import Path

DEMO_MODEL, DEMO_DATA = "demo-gpt2", "demo-reviews"

DEMO_RATE = 3e-3
"""Learning rate for the demo's model, which is tiny."""

ZERO_SHOT_TEMPLATE = "{text} Category: {label}."

DATA_FILES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".feather", ".arrow")

PACKED_FILES = (".gz", ".bz2", ".xz", ".zst", ".zip")

WHAT_IS_READ = (
    f"{', '.join(DATA_FILES[:-1])} and {DATA_FILES[-1]} files, also packed ({', '.join(PACKED_FILES)}), and .txt files "
    "in folders named by class"
)

SPLITS = ("train", "validation", "test")

MOST_SEEDS = 100

STORE = Path("mlruns")
"""Where everything lies that runs leave behind, in the current folder."""

DEPLOYMENTS = Path("prefect.yaml")
"""Where this is not, `peft-flow up` does not start."""

RESERVED_COLUMNS = frozenset(
    {
        *("row", "label", "labels", "length", "full_length", "input_ids", "attention_mask", "token_type_ids"),
        *("flip", "true_label", "given_label", "likely_label", "baseline_label", "tuned_label"),
        *("true_label_probability", "given_label_probability", "likely_label_probability"),
        *("baseline_probability", "tuned_probability", "true_number", "given_number", "likely_number"),
        *("baseline_number", "tuned_number", "baseline_error", "tuned_error"),
    }
)
"""What the prepared data, and the tables of single rows, call their own columns."""


def data_kind(name: str | Path) -> str | None:
    """How the rows of a file are written: `.csv` for `a.csv` and `A.CSV.gz`, `.zip` for `a.zip`; None for no data."""
    path = Path(name)
    kind, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if kind in PACKED_FILES:
        return inner if inner in DATA_FILES else kind if kind == ".zip" else None
    return kind if kind in DATA_FILES else None
