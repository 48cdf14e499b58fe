"""docs/support.md, written and read: a table of families, one of methods for each of three families, and footnotes."""

import re
from collections.abc import Iterator, Mapping

from tests.conftest import ROOT

PAGE = ROOT / "docs/support.md"

WORKS = "works"

METHOD_FAMILIES = {"bert": "BERT", "gpt2": "GPT-2", "llama": "Llama"}

STEPS = ("trains", "read back", "merged", "merged folder", "ONNX")

NF4_STEPS = {"nf4 trains": "trains", "nf4 read back": "read back", "nf4 merged": "merged"}
"""Columns of a model in 4 bits, and the steps that they are about."""

FAMILY_COLUMNS = ("trains", "read back", "merged", "merged folder", "ONNX", "adapted")

Row = dict[str, str]

Tables = dict[str, dict[str, Row]]
"""By table (`family`, or the family that methods were tried on), by name, a row by column."""


def columns_of(table: str) -> tuple[str, ...]:
    return FAMILY_COLUMNS if table == "family" else (*STEPS, *NF4_STEPS)


def write_page(tables: Tables) -> None:
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    notes: dict[str, int] = {}
    families = written("family", "family", tables["family"], notes)
    methods = "\n\n".join(
        f"### {title}\n\n{written(table, f'method on {title}', tables[table], notes)}"
        for table, title in METHOD_FAMILIES.items()
    )
    footnotes = "\n".join(f"{number}. {note}" for note, number in notes.items())
    text = INTRODUCTION.format(packages=packages, families=families, methods=methods, footnotes=footnotes)
    PAGE.write_text(text, encoding="utf-8")


def written(table: str, title: str, rows: Mapping[str, Row], notes: dict[str, int]) -> str:
    columns = columns_of(table)
    head = [f"| {title} | {' | '.join(columns)} |", "| - " * (len(columns) + 1) + "|"]
    body = [
        f"| `{name}` | {' | '.join(short(row.get(column, ''), notes) for column in columns)} |"
        for name, row in rows.items()
    ]
    return "\n".join([*head, *body])


def short(cell: str, notes: dict[str, int]) -> str:
    """`works` and names of layers as they are; of what did not work the first word, and the number of its line."""
    word, colon, line = cell.partition(": ")
    return f"{word} [{notes.setdefault(line, len(notes) + 1)}]" if colon else cell


def read_page() -> Tables:
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    notes = {number: line for number, line in re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)}

    def whole(cell: str) -> str:
        return re.sub(r" \[(\d+)\]$", lambda found: f": {notes[found[1]]}", cell)

    titles = {"family": "family", **{f"method on {title}": table for table, title in METHOD_FAMILIES.items()}}
    tables: Tables = {table: {} for table in titles.values()}
    for title, name, cells in table_rows(text):
        named = zip(columns_of(titles[title]), map(whole, cells), strict=True)
        tables[titles[title]][name] = {column: cell for column, cell in named if cell}
    return tables


def table_rows(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Title of the table, name of the row and its cells."""
    title = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield title, cells[0].strip("`"), cells[1:]
        elif line.startswith("| ") and cells[0] != "-":
            title = cells[0]


INTRODUCTION = """# What was tried

Made by `python -m tests.support` on a CPU, with {packages}.
Each family of classifiers that transformers has, and each method, as a random model of two layers and width 64, goes
through peft-flow's own functions, step by step:

- *trains*: checked, measured and probed (families only), trained for three steps;
- *read back*: from its files, with the logits of the model that was trained;
- *merged*: into the model's weights, in memory; *merged folder*: read by plain transformers, from the files of
  `export --merged`; *ONNX*: read by ONNX Runtime, from the file of `export --onnx`;
- *nf4*: the same on a base model in 4 bits (`model.quantization: nf4`), merged into its weights written out as float32.

`works`: the logits are those of the trained model. `refused`: with exit code 2, before training, or before an export
leaves anything behind; the line is that of the number, [at the end of the page](#the-lines). A cell is empty after one
that did not work, and where nothing was tried.

Every model is tried before each training, known here or not: a text must get the same logits alone, beside another
one, and again after other texts, and the adapter must have a say in them.

## Families, with LoRA on the layers that are adapted where none are named

{families}

## Methods, on the layers that are adapted where none are named

{methods}

## The lines

{footnotes}
"""
