"""Texts that several rows have: in which splits, with which labels, and when that makes the data worthless."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from tasks.base.words import ROW_EXAMPLES, counted, named_rows
from tasks.settings.fields import InputError
from tasks.settings.fixed import SPLITS
from tasks.sources.columns import BATCH_ROWS, numbers

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from datasets import Dataset, DatasetDict


THREE_LETTERS = re.compile(r"(?:[\W_]*[^\W_]){3}")
"""Matches a text with three letters or digits, of any script; a text without them is nearly empty."""

FEW_WORDS = 3
"""From so many words on, texts are the same whatever their punctuation; in `ok :(` or `C#` it may say something."""


def normal(text: str) -> str:
    """`text` without what makes no difference to a reader: Unicode form, case, and how its words are spaced."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def words_alone(text: str) -> str:
    """`text`, as `normal` gives it, without punctuation, unless it has few words."""
    every, ascii_alone = punctuation_as_spaces()
    # bytes, because str.translate looks up every letter in a dictionary: ten times as slow
    bare = text.encode().translate(ascii_alone).decode() if text.isascii() else text.translate(every)
    words = bare.split()
    return " ".join(words) if len(words) >= FEW_WORDS else text


@lru_cache
def punctuation_as_spaces() -> tuple[dict[int, str], bytes]:
    """For str.translate, and of ASCII for bytes.translate. Symbols, emoji among them, are not punctuation."""
    every = {code: " " for code in range(0x20000) if unicodedata.category(chr(code)).startswith("P")}
    return every, bytes(ord(" ") if code in every else code for code in range(256))


def same_texts(
    splits: "DatasetDict", text_columns: Sequence[str], labels: "Mapping[str, np.ndarray] | None" = None
) -> "pd.DataFrame":
    """A line for each row that has a text: `split`, `place` in it, `row` in the source, `label`, and what its text is.

    `labels` are a number for each of the different labels, by split, (rows,), -1 for what is none; of classes it is
    the column `label` itself.

    Rows with the same `exact` have the same text, in both columns of a pair, once case, Unicode form and spaces are
    set aside; those with the same `text`, once punctuation is too. Both are 64-bit hashes: that two different texts
    of a million share one happens in one of forty million data sets. `near_empty` is a text without three letters.
    """
    import numpy as np
    import pandas as pd

    kinds = [("exact", np.int64), ("text", np.int64), ("near_empty", bool)]
    roles, parts = pd.CategoricalDtype(list(SPLITS), ordered=True), []
    for name, split in splits.items():
        keys = pd.DataFrame(np.fromiter(text_keys(split, text_columns), kinds, len(split)))
        keys["split"] = pd.Categorical.from_codes(np.full(len(split), SPLITS.index(name)), dtype=roles)
        keys["place"] = np.arange(len(split))
        parts.append(keys.assign(row=numbers(split, "row"), label=labels[name] if labels else numbers(split, "label")))
    table = pd.concat(parts, ignore_index=True)
    return table[table["exact"] != hash("")]


def text_keys(split: "Dataset", text_columns: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """`exact`, `text` and `near_empty` of each row."""
    for batch in split.select_columns(list(text_columns)).iter(batch_size=BATCH_ROWS):
        for row in zip(*(batch[column] for column in text_columns), strict=True):
            parts = [normal(part or "") for part in row]
            whole = "\n".join(parts).strip()
            yield hash(whole), hash("\n".join(map(words_alone, parts))), not THREE_LETTERS.match(whole)


def stable_keys(columns: Sequence[Iterable[str]]) -> Iterator[int]:
    """A number for each row's text, as `text` of `same_texts` tells texts apart, but the same in every process."""
    for row in zip(*columns, strict=True):
        text = "\n".join(words_alone(normal(part or "")) for part in row)
        yield int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def leaked_rows(rows: "pd.DataFrame", split: str, other: str = "train") -> "pd.DataFrame":
    """Rows of `split` whose text is in `other`, and `first`, the first row that has it there."""
    there = rows[rows["split"] == other].drop_duplicates("text").rename(columns={"row": "first"})
    return rows[rows["split"] == split].merge(there[["text", "first"]], on="text")


def repeated_rows(rows: "pd.DataFrame", split: str) -> "pd.DataFrame":
    """Rows of `split` whose text an earlier row of it has, and `first`, the first of these."""
    part = rows[rows["split"] == split]
    return part.assign(first=part.groupby("text")["row"].transform("first"))[part.duplicated("text")]


def conflicts(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The first row of each label of each text that has more than one."""
    firsts = rows[rows["label"] >= 0].drop_duplicates(["text", "label"])
    return firsts[firsts["text"].duplicated(keep=False)]


def describe_sharing(rows: "pd.DataFrame", label_names: Sequence[str], conflict: str) -> list[str]:
    """What shared texts do to the data, a sentence each, worst first; with the rows to look at. `conflict` is what a
    text has whose rows do not agree, in words."""
    told = []
    if leak := describe_leak(rows, "test", "train"):
        told.append(f"Leakage: {leak}")
    told += describe_conflicts(rows, label_names, conflict)
    for split, other in (("validation", "train"), ("test", "validation")):
        if leak := describe_leak(rows, split, other):
            told.append(f"T{leak[1:]}")
    for split in SPLITS:
        again = repeated_rows(rows, split)
        if len(again):
            have = "has" if len(again) == 1 else "have"
            where = f"{named_rows(split, again['row'].tolist())}; earlier {named_rows(split, again['first'].tolist())}"
            told.append(f"{counted(len(again), f'{split} row')} {have} the text of an earlier one ({where})")
    return told


def describe_leak(rows: "pd.DataFrame", split: str, other: str) -> str:
    leaked, total = leaked_rows(rows, split, other), int((rows["split"] == split).sum())
    if leaked.empty:
        return ""
    where = f"{named_rows(split, leaked['row'].tolist())}; {named_rows(other, leaked['first'].tolist())}"
    return f"the text of {len(leaked):,} of {total:,} {split} rows is also in {other} ({where})"


def describe_conflicts(rows: "pd.DataFrame", label_names: Sequence[str], conflict: str) -> list[str]:
    """At most one sentence."""
    found = conflicts(rows)
    if found.empty:
        return []
    texts: dict[int, list[str]] = {}
    for text, split, row, label in zip(*(found[name] for name in ("text", "split", "row", "label")), strict=True):
        texts.setdefault(text, []).append(f"{split} row {row} {label_names[label]!r}")
    named = "; ".join(", ".join(places) for places in list(texts.values())[:ROW_EXAMPLES])
    more = f"; and {len(texts) - ROW_EXAMPLES:,} more" if len(texts) > ROW_EXAMPLES else ""
    have = "has" if len(texts) == 1 else "have"
    return [f"{counted(len(texts), 'text')} {have} {conflict} ({named}{more})"]


def refuse_hopeless(rows: "pd.DataFrame", label_names: Sequence[str], one_class: bool = True) -> None:
    """Raises InputError for data from which nothing can be learned, or on which nothing can be measured. Where a text
    has not `one_class` only, people may well disagree about it.

    What differs by punctuation is different here: who is refused can do nothing about it.
    """
    rows = rows[["split", "row", "label", "exact"]].rename(columns={"exact": "text"})
    train = rows[rows["split"] == "train"]
    if train["text"].nunique() == 1:
        raise InputError(f"data.text_columns: all {len(train):,} training texts are the same; is it the right column?")
    unclear = train[train["text"].isin(conflicts(train)["text"])]
    if one_class and 2 * len(unclear) > len(train):
        (texts,) = describe_conflicts(train, label_names, "more than one label")
        raise InputError(
            f"data.label_column: {len(unclear):,} of {len(train):,} training rows have a text that also has another "
            f"label, so that nothing can be learned: {texts}; give each text one label"
        )
    leaked = leaked_rows(rows, "test")
    if len(leaked) == (rows["split"] == "test").sum():
        raise InputError(
            f"data: {describe_leak(rows, 'test', 'train')}; a score on them would say nothing about new texts: "
            "take them out of train or test, and where test is cut from train, rows that are there twice"
        )
