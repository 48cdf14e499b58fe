"""Labels that a person has looked at: the file of `peft-flow review`, filled in, taken back into the rows.

A correction is about a text, wherever its row lies now: data that grow, or are cut anew, change no correction.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.records import Corrections, PreparedData
from tasks.base.words import counted, listed
from tasks.data.labels import as_label, number_of, numbered
from tasks.scores.objective import objective
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean
from tasks.settings.sections import DataConfig
from tasks.sources.columns import BATCH_ROWS
from tasks.sources.local import file_path
from tasks.sources.reading import CORRECTION_COLUMNS, CORRECTIONS, as_field, check_corrections

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict


CORRECTIONS_FILE = "corrections.csv"
"""With prepared data, and of a run in MLflow: the corrections, and what came of each."""

CORRECTED, CONFIRMED, IN_TEST, UNMATCHED = "corrected", "confirmed", "not used: a test row", "not used: no such text"
"""What can come of one."""


class Correction(NamedTuple):
    """A row of the file that is filled in."""

    row: int
    """Place in the file, from 0."""
    id: str
    """That of a text, as `text_ids` gives it."""
    label: int
    text: str
    """How the text begins, where the file has a column with it."""


class Corrected(NamedTuple):
    """What came of a file of corrections."""

    counts: Corrections
    outcomes: tuple[tuple[str, str, str], ...]
    """Id, corrected label, and one of CORRECTED, CONFIRMED, IN_TEST and UNMATCHED, for each."""

    def write(self, path: Path) -> None:
        """As a file that can itself be `data.corrections`."""
        import pandas as pd

        pd.DataFrame(self.outcomes, columns=[*CORRECTION_COLUMNS, "outcome"]).to_csv(path, index=False)


def recorded_outcomes(data: PreparedData) -> "pd.DataFrame":
    """`id`, `corrected_label` and `outcome` of each correction of prepared data; without rows where there are none."""
    import pandas as pd

    file = Path(data.folder) / CORRECTIONS_FILE
    if not file.exists():
        return pd.DataFrame(columns=[*CORRECTION_COLUMNS, "outcome"])
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def text_ids(columns: Sequence[Iterable[str]]) -> Iterator[str]:
    """`sha256:` and 16 digits for each row's text, letter by letter: in any spreadsheet it remains a word."""
    for row in zip(*columns, strict=True):
        total = hashlib.sha256()
        for part in row:
            encoded = part.encode("utf-8", "surrogatepass")
            total.update(len(encoded).to_bytes(8, "little") + encoded)
        yield f"sha256:{total.hexdigest()[:16]}"


def ids_of(split: "Dataset", config: DataConfig) -> list[str]:
    """`text_ids` of each row."""
    ids: list[str] = []
    for batch in split.select_columns(list(config.text_columns)).iter(batch_size=BATCH_ROWS):
        ids += text_ids([batch[name] for name in config.text_columns])
    return ids


def correct(splits: "DatasetDict", config: DataConfig, task: str, names: Sequence[str]) -> Corrected:
    """Give rows of train and validation the label of `data.corrections` for their text, and say what came of each.

    Test rows keep theirs: people looked where a model disagrees, so that correcting them would raise its score alone.
    """
    import numpy as np

    from tasks.data.targets import labels_of

    assert config.corrections
    if not objective(task).one_class:
        raise InputError(f"{CORRECTIONS}: rows with one class each can be corrected, and these are for {task}")
    file = file_path(CORRECTIONS, config.corrections)
    given, unfilled = read_corrections(file, names, config)
    wanted = {one.id: one.label for one in given}
    found: dict[str, str] = {}
    corrected: dict[str, int] = {}
    for role in ("test", "validation", "train"):  # what comes later counts for more
        ids, labels = ids_of(splits[role], config), labels_of(splits[role]).copy()
        for place in (place for place, one in enumerate(ids) if one in wanted):
            label, outcome = wanted[ids[place]], IN_TEST
            if role != "test":
                is_new = labels[place] != label
                outcome = CORRECTED if is_new or found.get(ids[place]) == CORRECTED else CONFIRMED
                corrected[role] = corrected.get(role, 0) + int(is_new)
                labels[place] = label
            found[ids[place]] = outcome
        if corrected.get(role):
            columns, feature = splits[role].column_names, splits[role].features["label"]
            changed = splits[role].remove_columns("label").add_column("label", np.asarray(labels), feature=feature)
            splits[role] = changed.select_columns(columns)
    return told(given, unfilled, found, {role: corrected[role] for role in sorted(corrected) if corrected[role]}, names)


def told(
    given: Sequence[Correction],
    unfilled: int,
    found: dict[str, str],
    corrected: dict[str, int],
    names: Sequence[str],
) -> Corrected:
    outcomes = [found.get(one.id, UNMATCHED) for one in given]
    if set(outcomes) == {UNMATCHED}:
        raise InputError(
            f"{CORRECTIONS}: none of its {counted(len(given), 'correction')} is about a text of these data; give the "
            "file that peft-flow review has written for them"
        )
    counts = Corrections(
        used=outcomes.count(CORRECTED),
        corrected=corrected,
        confirmed=outcomes.count(CONFIRMED),
        unmatched=tuple(
            f"row {one.row}{f' {one.text!r}' if one.text else ''}"
            for one, outcome in zip(given, outcomes, strict=True)
            if outcome == UNMATCHED
        ),
        in_test=outcomes.count(IN_TEST),
        open=unfilled,
    )
    rows = ((one.id, names[one.label], outcome) for one, outcome in zip(given, outcomes, strict=True))
    return Corrected(counts, tuple(rows))


def read_corrections(file: Path, names: Sequence[str], config: DataConfig) -> tuple[list[Correction], int]:
    """The rows of `file` that are filled in, one for each text, and how many are not.

    InputError names the row of a label that does not exist, of an id that is missing, and of two corrections for the
    same text that differ.
    """
    from tasks.sources.kept import rows_of

    check_corrections(file)
    with as_field(CORRECTIONS):
        rows = rows_of([(file,)])
    number, given, unfilled = numbered(names, False), dict[str, Correction](), 0
    for place, row in enumerate(rows):
        if not (word := (as_label(row["corrected_label"]) or "").strip()):
            unfilled += 1
            continue
        where = f"row {place} of {file.name}{described(row)}"
        if not (text_id := str(row["id"] or "").strip()):
            raise InputError(f"{CORRECTIONS}: {where} has a corrected_label and no id; put it back")
        label = number_of(word, number)
        if label < 0:
            raise InputError(
                f"{CORRECTIONS}: {where} has the label {word!r:.80}, which these data do not have; "
                f"{did_you_mean(word, names)}"
            )
        text = next((str(row[name]) for name in config.text_columns if row.get(name)), "")
        one = Correction(place, text_id, label, text if len(text) <= BEGINNING else f"{text[:BEGINNING]}...")
        if (other := given.setdefault(text_id, one)).label != label:
            raise InputError(
                f"{CORRECTIONS}: rows {other.row} and {place} of {file.name} are about the same text and say "
                f"{names[other.label]!r} and {word!r}; decide for one"
            )
    if not given:
        raise InputError(
            f"{CORRECTIONS}: no row of {file.name} has a corrected_label; fill in at least one, or leave the field out"
        )
    return list(given.values()), unfilled


BEGINNING = 40
"""Letters of a text by which people know it."""


def described(row: dict[str, object]) -> str:
    """Where the row was found, in the words of `peft-flow review`."""
    return f" ({row['split']} row {row['row']})" if row.get("split") and row.get("row") is not None else ""


def describe_corrections(counts: Corrections) -> str:
    """In a sentence."""
    rows = " and ".join(counted(count, f"{role} row") for role, count in counts.corrected.items())
    parts = [f"{counted(counts.used, 'label')} corrected{f' ({rows})' if rows else ''}"]
    parts += [f"{counts.confirmed:,} confirmed"] if counts.confirmed else []
    if counts.in_test:
        parts.append(f"{counts.in_test:,} not used because {'it is a test row' if counts.in_test == 1 else THEY_ARE}")
    if counts.unmatched:
        about = "is about a text" if len(counts.unmatched) == 1 else "are about texts"
        where = listed(counts.unmatched)
        parts.append(f"{len(counts.unmatched):,} {about} that no row has any more ({where})")
    parts += [f"{counts.open:,} not filled in"] if counts.open else []
    return f"{CORRECTIONS}: {', '.join(parts)}"


THEY_ARE = "they are test rows"
