"""Numbers and lists as people read them."""

import math
import re
from collections.abc import Sequence

from tasks.base.records import Interval


def shown_share(value: float) -> str:
    """Three digits of a share of rows; 0 and 1 stand for none and all of them, not for nearly so."""
    return f"{value if value in (0, 1) else min(max(value, 0.001), 0.999):.3f}"


def ends(interval: Interval) -> tuple[str, str]:
    """Of a share, rounded so that they hold it as it is shown."""
    low, high = interval.low, interval.high
    return f"{low if low == 1 else min(low, 0.999):.3f}", f"{high if high == 0 else max(high, 0.001):.3f}"


def bounds(interval: Interval) -> str:
    return f"{shown_share(interval.value)} ({'-'.join(ends(interval))})"


def shown(gain: Interval, title: str = "", middle: str = " to ") -> str:
    value, low, high = signed(gain)
    return f"{value} ({title}{low}{middle}{high})"


def signed(gain: Interval) -> list[str]:
    """A difference and its ends; with as many digits as it takes to see that these leave out 0, where they do. Of
    differences above 1, which no share has, with three digits."""
    largest = max(abs(gain.low), abs(gain.high))
    smallest = largest if gain.low <= 0 <= gain.high else min(abs(gain.low), abs(gain.high))
    digits = 3 if largest <= 1 else decimals(largest)
    if smallest and not round(smallest, digits):
        digits = -math.floor(math.log10(smallest))
    return [f"{number:+z,.{digits}f}" for number in (gain.value, gain.low, gain.high)]


def decimals(value: float) -> int:
    """How many it takes to see three digits of `value`; digits before the point are never rounded away."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0


def format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def short_p(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def plain(text: str) -> str:
    """`text` on one line, so that markdown shows it letter by letter: one of the data can be a link or HTML."""
    return re.sub(r"([\\`*_~\[\]<>&])", r"\\\1", " ".join(text.split()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it reads as well in a terminal; cells cannot break out of it."""
    clean = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in clean) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in clean]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


ROW_EXAMPLES = 10
"""How many offending rows a message names."""


def named_rows(split: str, rows: Sequence[int]) -> str:
    """`train row 60`, `test rows 1, 2`, or ten of them and how many more there are."""
    return f"{split} row{'s'[: len(rows) != 1]} {listed(rows)}"


def listed(things: Sequence[object]) -> str:
    more = f" and {len(things) - ROW_EXAMPLES:,} more" if len(things) > ROW_EXAMPLES else ""
    return ", ".join(map(str, things[:ROW_EXAMPLES])) + more


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s'[: count != 1]}"
