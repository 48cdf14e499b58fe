"""What a data set is likely to be meant for: which columns are text and label, what is learned, which rows test it.

By the first rows alone. A guess is told with its reason, written down, and then checked as every configuration is.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import chain, islice, pairwise
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from tasks.base.records import Source
from tasks.base.words import counted, listed
from tasks.data.labels import NUMBER, SEPARATORS
from tasks.data.targets import FEW_NUMBERS
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.advice import looks_like_text
from tasks.sources.folders import saved_by_datasets
from tasks.sources.formats import read_rows
from tasks.sources.reading import class_names, find_files, load

LOOKED_AT, KEPT = 100_000, 2_000
"""The first rows, and how many of them are drawn: a file may be sorted by its labels."""

PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("question", "sentence")),
    *(("text_a", "text_b"), ("text1", "text2"), ("query", "passage"), ("query", "document"), ("title", "body")),
)
"""Columns that are read together, as public data sets call them."""

LABEL_NAMES = (
    *("label", "labels", "class", "target", "category", "sentiment", "intent", "topic", "tag", "tags", "rating"),
    *("stars", "score", "y", "kategorie", "klasse"),
)

MOST_CLASSES = 100

DAY = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}")

LENGTHS = (64, 128, 256, 512)

TOKENS_A_WORD = 1.4
"""Of English prose, with the tokens around it; other languages have more."""


class Guess(NamedTuple):
    """Fields of the configuration's section `data`, and for each in a few words why."""

    fields: dict[str, Any]
    why: dict[str, str]

    def yaml(self, first_line: str, model: str) -> str:
        """A whole configuration, with the reasons as comments."""
        lines = [
            f"# {first_line}",
            "model:",
            f"  name: {plain(model)}  # small and quick, English; any of the Hub will do",
        ]
        lines.append("data:")
        for name, value in self.fields.items():
            reason = self.why.get(name)
            lines.append(f"  {name}: {plain(value)}" + (f"  # {reason}" if reason else ""))
        lines += ["adapter:", "  method: lora", "training:", "  epochs: 3", ""]
        return "\n".join(lines)

    def with_task(self, task: str) -> "Guess":
        fields = {**self.fields, "task": task}
        return Guess(fields, {**self.why, "task": TASKS[task]})


TASKS = {
    "single_label": "one class for each text; multi_label and regression are the others",
    "multi_label": "any number of labels for each text; single_label would take each combination for a class",
    "regression": "a number; single_label would take each different one for a class",
}


def told(guess: Guess) -> str:
    """For a terminal."""
    values = {name: plain(value) for name, value in guess.fields.items()}
    width = max(len(value) for value in values.values() if len(value) <= 40)
    lines = (f"{name:<16} {value:<{width}}   {guess.why.get(name, '')}".rstrip() for name, value in values.items())
    return "\n".join(fill(line, 120, subsequent_indent=" " * (width + 20), break_long_words=False) for line in lines)


def plain(value: Any) -> str:
    """A value as YAML has it, in one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


class Sample(NamedTuple):
    columns: dict[str, list[Any]]
    """Values of each column of some training rows; None where there is none."""
    coded: dict[str, tuple[str, ...]]
    """Class names of columns in which numbers stand for them."""
    splits: tuple[str, ...]


def guess(source: Source, name: str) -> Guess:
    """InputError where no column holds texts, or none can be a label."""
    sample = take_sample(source, name)
    texts, why_texts = guess_texts(sample)
    fields: dict[str, Any] = {"name": name, "text_columns": list(texts)}
    why = {"text_columns": why_texts}
    label, told = guess_label(sample, texts)
    fields |= label
    why |= told
    words = sorted(
        sum(len(str(sample.columns[column][row] or "").split()) for column in texts)
        for row in range(len(sample.columns[texts[0]]))
    )
    long = words[int(0.95 * (len(words) - 1))]
    fields["max_length"] = next((size for size in LENGTHS if long * TOKENS_A_WORD + 2 <= size), LENGTHS[-1])
    why["max_length"] = f"tokens; 95 % of the texts have at most {counted(long, 'word')}"
    return Guess(fields | guess_splits(sample, why), why)


def take_sample(source: Source, name: str) -> Sample:
    path = Path(source.name)
    if source.is_local and not saved_by_datasets(path):
        folder = find_files(path, DataConfig(name=name))
        if not folder.whole:
            pieces = folder.splits.get("train") or next(iter(folder.splits.values()), [])
            rows = drawn(row for row in islice(rows_of(pieces, folder.sep), LOOKED_AT) if isinstance(row, dict))
            if not rows:
                raise InputError(f"{name} has no rows that can be read")
            names = dict.fromkeys(chain.from_iterable(rows))
            columns = {str(column): [row.get(column) for row in rows] for column in names}
            return Sample(columns, {}, tuple(folder.splits))
    loaded = load(source, DataConfig(name=name))
    split = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    rows = split[drawn(iter(range(min(len(split), LOOKED_AT))))]
    coded = {column: tuple(class_names(split.features, column)) for column in rows}
    return Sample(dict(rows), {column: names for column, names in coded.items() if names}, tuple(map(str, loaded)))


def drawn(rows: Iterator[Any]) -> list[Any]:
    """KEPT of them at most, each as likely as any other, in order (reservoir sampling: Vitter, TOMS 11, 1985)."""
    generator, kept = random.Random(0), dict[int, Any]()
    for place, row in enumerate(rows):
        if place < KEPT:
            kept[place] = place, row
        elif (free := generator.randrange(place + 1)) < KEPT:
            kept[free] = place, row
    return [row for _, row in sorted(kept.values(), key=lambda pair: pair[0])]


def rows_of(pieces: Sequence[Sequence[Path]], sep: str | None) -> Iterator[Any]:
    for piece in pieces:
        for file in piece:
            yield from (raw for raw, _ in read_rows(file, sep=sep))


def there(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None and value != "" and value == value]


def guess_texts(sample: Sample) -> tuple[tuple[str, ...], str]:
    prose = {}
    for name, values in sample.columns.items():
        given = there(values)
        if given and all(isinstance(value, str) for value in given) and looks_like_text(given):
            prose[name] = sum(len(value.split()) for value in given) / len(given)
    for pair in PAIRS:
        if set(pair) <= prose.keys():
            return pair, "two texts that belong together, by their names"
    if not prose:
        short = [name for name, values in sample.columns.items() if all(isinstance(one, str) for one in there(values))]
        chosen = next((name for name in ("text", "sentence", "title", "query") if name in short), None)
        if not chosen:
            raise InputError(
                f"no column holds sentences; there are {listed(list(sample.columns))}. Name one in data.text_columns"
            )
        return (chosen,), "the only column that is called like a text; its values are single words"
    best = max(prose, key=prose.__getitem__)
    others = [name for name in prose if name != best]
    also = f"; {listed(others)} would be possible too, or two as a pair" if others else ""
    return (best,), f"the longest texts, {prose[best]:.0f} words on average{also}"


def guess_label(sample: Sample, texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of the label or labels, and why."""
    rest = {name: there(values) for name, values in sample.columns.items() if name not in texts}
    flags = [name for name, values in rest.items() if values and set(map(str, values)) <= {"0", "1", "0.0", "1.0"}]
    named = sorted((name for name in rest if name.lower() in LABEL_NAMES), key=lambda n: LABEL_NAMES.index(n.lower()))
    if len(flags) > 1 and not named:
        return {"label_columns": flags}, {"label_columns": "columns of 0 and 1: several labels for each text"}
    kinds = {name: kind for name, values in rest.items() if (kind := kind_of(name, values, sample))}
    choice = next((name for name in named if name in kinds), None)
    why = "called like a label"
    if choice is None:
        # few classes rather than many, classes rather than numbers
        choice = min(kinds, key=lambda name: (kinds[name][0] == "regression", kinds[name][1]), default=None)
        why = "of those that can be, the one with the fewest different values"
    if choice is None:
        raise InputError(
            f"no column can be a label; besides {' and '.join(texts)} there are {listed(list(rest)) or 'none'}. "
            "Name one in data.label_column"
        )
    task, count = kinds[choice]
    shares = Counter(map(str, chain.from_iterable(v if isinstance(v, list) else [v] for v in rest[choice])))
    names = sample.coded.get(choice)
    shares_shown = ", ".join(
        f"{names[int(value)] if names and value.isdecimal() and int(value) < len(names) else value} ({times})"
        for value, times in shares.most_common(5)
    )
    what = f"{count} different values: {shares_shown}{', ...' * (count > 5)}"
    if task == "regression":
        what = f"numbers, {count} different ones"
    others = [name for name in kinds if name != choice and kinds[name][0] != "regression"]
    also = f"; {listed(others)} would be possible too" if others else ""
    return {"label_column": choice}, {"label_column": f"{why}; {what}{also}"}


def kind_of(name: str, values: Sequence[Any], sample: Sample) -> tuple[str, int] | None:
    """Task and number of different values of a column that can be a label; None for one that cannot."""
    if not values:
        return None
    if name in sample.coded:
        return "single_label", len(sample.coded[name])
    if all(isinstance(value, list) for value in values):
        return "multi_label", len(set(chain.from_iterable(values)))
    different = set(map(str, values))
    if any(isinstance(value, dict | list | date) for value in values) or all(map(DAY.match, different)):
        return None
    if len(different) < 2:
        return None
    is_number = all(NUMBER.fullmatch(value.strip()) for value in different)
    if is_number and (len(different) > 20 or (has_decimals(different) and len(different) >= FEW_NUMBERS)):
        return None if counts_up(values) else ("regression", len(different))
    if len(different) > min(MOST_CLASSES, max(2, len(values) // 2)):
        parts = splits_up(different)
        return ("multi_label", parts) if parts else None
    return "single_label", len(different)


def has_decimals(different: set[str]) -> bool:
    return any(not value.strip().lstrip("-").isdecimal() for value in different)


def counts_up(values: Sequence[Any]) -> bool:
    """Whether they are numbers of the rows: each larger than the one before, and whole."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return False
    return len(numbers) > 2 and all(before < after and after % 1 == 0 for before, after in pairwise(numbers))


def splits_up(different: set[str]) -> int:
    """How many labels these values are made of, if they are a few in many combinations; else 0."""
    for separator in SEPARATORS:
        parts = {part.strip() for value in different for part in value.split(separator)}
        if 2 <= len(parts) <= min(MOST_CLASSES, len(different) // 2):
            return len(parts)
    return 0


def guess_splits(sample: Sample, why: dict[str, str]) -> dict[str, str]:
    """Names of splits that are not called as usual; in `why`, where the rows come from."""
    found: dict[str, str] = {}
    if "train" not in sample.splits:
        found["train_split"] = sample.splits[0]
        why["train_split"] = "there is none called train"
    for role, called in (("validation", ("dev", "valid", "val", "eval")), ("test", ("eval",))):
        if role in sample.splits:
            continue
        if other := next((n for n in called if n in sample.splits and n not in found.values()), None):
            found[f"{role}_split"] = other
            why[f"{role}_split"] = f"there is none called {role}"
    return found
