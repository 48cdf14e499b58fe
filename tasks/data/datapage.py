"""The data check as a page that people read in Prefect and MLflow."""

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.base.records import DataCheck, SameText
from tasks.base.words import counted, listed, markdown_table
from tasks.data.frozen import describe_kept_out
from tasks.settings.fixed import SPLITS

if TYPE_CHECKING:
    import numpy as np


TEXTS_SHOWN = 50
"""Shared texts on the page; data_check.json has more."""


def check_page(name: str, warnings: Sequence[str], power: str, tables: str) -> str:
    """The whole check of the data set `name`: warnings, what the test rows can show, and `tables_page`'s tables."""
    points = "\n".join(f"- {html.escape(warning, quote=False)}" for warning in warnings)
    return "\n\n".join(filter(None, (f"# Data check: {name}", points or "Nothing to warn of.", power, tables)))


def tables_page(
    check: DataCheck,
    counts: "np.ndarray",
    sizes: "np.ndarray",
    names: Sequence[str],
    lengths: Mapping[str, "np.ndarray"],
    total: int,
) -> str:
    """Splits, shared texts (`total` of them) and token lengths; `counts` (3, classes) of the rows `sizes`, (3,)."""
    import numpy as np

    header = ("split", "rows", "classes", "repeat an earlier row", "text in train", "truncated", "tokens")
    splits = [
        (
            split,
            f"{rows:,}",
            shares(row / rows, names),
            f"{check.duplicates[split]:,}",
            f"{len(check.leaked[split]):,}" if split in check.leaked else "",
            f"{100 * check.truncated[split] / rows:.1f} %",
            f"{lengths[split].min():,} / {np.median(lengths[split]):,.0f} / {lengths[split].max():,}",
        )
        for split, row, rows in zip(SPLITS, counts, sizes.tolist(), strict=True)
    ]
    parts = [
        "## Splits",
        markdown_table(header, splits),
        "Tokens: shortest, median and longest text, before any were cut off.",
        *([f"{describe_kept_out(check.kept_out)}.".capitalize()] if check.kept_out else []),
        "## Texts that several rows have",
        *shared_section(check.same_texts, total),
        "## Token lengths",
        length_table(check),
    ]
    return "\n\n".join(parts) + "\n"


def shares(shares: "np.ndarray", names: Sequence[str]) -> str:
    """`bad 50.0 %, good 50.0 %`; of many classes, how many there are and the smallest and largest share."""
    if not names:
        return "a number"
    percent = 100 * shares
    if len(names) <= 5:
        return ", ".join(f"{name} {share:.1f} %" for name, share in zip(names, percent, strict=True))
    return f"{len(names)}, {percent.min():.1f} % to {percent.max():.1f} % each"


def shared_section(texts: Sequence[SameText], total: int) -> list[str]:
    if not texts:
        return ["None: no text is there twice, whatever its case, Unicode form, spaces and punctuation."]
    rows = []
    for shared in texts[:TEXTS_SHOWN]:
        places = [f"{p.split} {p.row} {label!r}" for p, label in zip(shared.places, shared.labels, strict=True)]
        rows.append((html.escape(shared.text, quote=False), html.escape(listed(places), quote=False)))
    more = [f"And {total - TEXTS_SHOWN:,} more."] if total > TEXTS_SHOWN else []
    return [
        f"{counted(total, 'text')}, equal but for case, Unicode form, spaces and punctuation; those in train and test "
        "come first. Rows count from 0 in the source of their split, also where it was cut from train.",
        markdown_table(("text", "rows and their labels"), rows),
        *more,
    ]


def length_table(check: DataCheck) -> str:
    edges = check.length_edges
    ranges = ((low, high - 1) for low, high in pairwise(edges[:-1]))
    bins = [*(f"{low} to {high}" if low < high else str(low) for low, high in ranges), f"{edges[-2]} or more"]
    columns = [[f"{count:,}" for count in check.lengths[split]] for split in SPLITS]
    return markdown_table(("tokens", *SPLITS), list(zip(bins, *columns, strict=True)))
