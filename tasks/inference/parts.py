"""The output of a long job, part by part: each whole on disk or not there, put together at the end.

Numbered files of a work folder. A part counts once its record is there, and only as long as its content is the one
that the record tells of; so a process that is killed anywhere leaves nothing that the next one could mistake.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tasks.base.disk import check_space
from tasks.base.files import whole, write_bytes
from tasks.base.outcomes import PredictionResult
from tasks.base.records import Record, file_sha256, read_record
from tasks.settings.fields import InputError

FORMATS = (".csv", ".jsonl", ".parquet")

Columns = Mapping[str, Sequence[Any]]
"""Values by name, all equally many."""


class Part(Record):
    read: int = 0
    """Rows of the input."""
    rows: int = 0
    """Of the output."""
    rejected: int = 0
    abstained: int = 0
    labels: dict[str, int]
    sha256: dict[str, str] = {}  # noqa: RUF012  (frozen)
    """Of each of its files."""
    environment: str = ""
    """Of the process that labelled it, see tasks/base/machine.py."""

    def plus(self, other: "Part") -> "Part":
        """The counts of both."""
        return Part(
            read=self.read + other.read,
            rows=self.rows + other.rows,
            rejected=self.rejected + other.rejected,
            abstained=self.abstained + other.abstained,
            labels={name: count + other.labels[name] for name, count in self.labels.items()},
        )


class Published(Record):
    """What the output was when it was written."""

    result: PredictionResult
    rejected_sha256: str | None


class Parts:
    """Those of one output in one work folder; `again` where the same input can come once more."""

    def __init__(self, work: Path, output: Path, again: bool, answers: Mapping[str, str]) -> None:
        self.work, self.output, self.again, self.answers = work, output, again, answers
        self.folder, self.kind = work / "parts", output.suffix.lower()
        self.rejected_output = rejected_path(output)
        self.ids: str | None = None
        """Kind of the column `id` of the whole output: int64, float64 or string."""

    def record(self, number: int) -> Path:
        """File of the record of a part."""
        return self.folder / f"{number:06}.json"

    def done(self, number: int) -> Part | None:
        """The record of a part that is there and whole."""
        part = read_record(Part, self.record(number))
        whole = part and all(
            (self.folder / name).is_file() and file_sha256(self.folder / name) == sha256
            for name, sha256 in part.sha256.items()
        )
        return part if whole else None

    def write(self, number: int, columns: Columns, rejected: Sequence[Mapping[str, Any]], part: Part) -> Part:
        """A part on disk. `part` says what is in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {f"{number:06}{self.kind}": self.encode(columns, first=number == 0)}
        if rejected:
            files[f"{number:06}.rejected"] = "".join(json.dumps(row, default=str) + "\n" for row in rejected).encode()
        for name, content in files.items():
            write_bytes(self.folder / name, content)
        part = part.model_copy(update={"sha256": {name: file_sha256(self.folder / name) for name in files}})
        part.write(self.record(number))
        return part

    def encode(self, columns: Columns, first: bool) -> bytes:
        if self.kind == ".parquet":
            return as_parquet(columns, self.answers, self.ids)
        return as_csv(columns, header=first) if self.kind == ".csv" else as_jsonl(columns)

    def given(self) -> PredictionResult | None:
        """The result, where the output is there and is the one that was written."""
        published = self.published()
        if not published or not all(self.is_ours(path) for path in (self.output, self.rejected_output)):
            return None
        return published.result.model_copy(update={"output": str(self.output.resolve()), "rejected_path": self.aside()})

    def published(self) -> Published | None:
        return read_record(Published, self.work / "published.json") if self.again else None

    def is_ours(self, path: Path) -> bool:
        """Whether it is as this prediction has left it, there or not there."""
        published, wanted = self.published(), None
        if published:
            wanted = published.result.sha256 if path == self.output else published.rejected_sha256
        return (file_sha256(path) if path.is_file() else None) == wanted

    def aside(self) -> str | None:
        return str(self.rejected_output.resolve()) if self.rejected_output.exists() else None

    def check_free(self, overwrite: bool) -> None:
        """Raises InputError where something else is in the place of the output."""
        for path in (self.output, self.rejected_output):
            if path.exists() and not overwrite and not self.is_ours(path):
                raise InputError(
                    f"output: {path} is there already and is not the result of this prediction; "
                    "give another name, or --overwrite to replace it"
                )

    def publish(self, result: PredictionResult, count: int, overwrite: bool) -> PredictionResult:
        """The first `count` parts as the output, which appears whole, and what was set aside beside it."""
        self.check_free(overwrite)
        names = [f"{number:06}" for number in range(count)]
        files = [file for name in names if (file := self.folder / f"{name}.rejected").exists()]
        with self.joined(self.output, [self.folder / f"{name}{self.kind}" for name in names]) as output:
            result = result.model_copy(update={"sha256": file_sha256(output)})
            with self.joined(self.rejected_output, files) if files else nullcontext() as rejected:
                published = Published(result=result, rejected_sha256=file_sha256(rejected) if rejected else None)
                # before anything gets its name: whoever finds it must know whose it is
                published.write(self.work / "published.json")
            if not rejected:
                self.rejected_output.unlink(missing_ok=True)
        self.clear()
        return result.model_copy(update={"rejected_path": self.aside()})

    @contextmanager
    def joined(self, target: Path, parts: Sequence[Path]) -> Iterator[Path]:
        """A hidden file beside `target` with the content of all parts, which becomes `target` at the end."""
        needed = sum(part.stat().st_size for part in parts)
        with whole(target, needed, writer=self.work.name) as staged:
            check_space(staged, needed)
            if target.suffix.lower() == ".parquet":
                join_parquet(staged, parts)
            else:
                join_lines(staged, parts)
            yield staged

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def rejected_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.rejected.jsonl")


# --- formats ---------------------------------------------------------------------------------------------------------


def as_jsonl(columns: Columns) -> bytes:
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(columns: Columns, header: bool = True) -> bytes:
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # else a carriage return within a text would end its row
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        (quoted if any("\r" in name for name in columns) else plain).writerow(columns)
    for values in zip(*columns.values(), strict=True):
        shown = [in_a_cell(value) for value in values]
        (quoted if any(isinstance(value, str) and "\r" in value for value in shown) else plain).writerow(shown)
    return text.getvalue().encode()


def in_a_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(value) if isinstance(value, list) else value


def as_parquet(columns: Columns, answers: Mapping[str, str], ids: str | None = None) -> bytes:
    import pyarrow
    import pyarrow.parquet

    of_answers = {"number": pyarrow.float64(), "text": pyarrow.string(), "texts": pyarrow.list_(pyarrow.string())}
    kinds = {"row": pyarrow.int64(), "abstained": pyarrow.bool_()}
    kinds |= {name: of_answers[kind] for name, kind in answers.items()}
    if ids in ("int64", "float64"):
        kinds["id"] = pyarrow.type_for_alias(ids)
    elif "id" in columns:
        columns = {**columns, "id": [None if value is None else str(value) for value in columns["id"]]}
    schema = pyarrow.schema((name, kinds.get(name, pyarrow.string())) for name in columns)
    with io.BytesIO() as file:
        pyarrow.parquet.write_table(pyarrow.table(dict(columns), schema), file)
        return file.getvalue()


def join_lines(target: Path, parts: Sequence[Path]) -> None:
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, file)


def join_parquet(target: Path, parts: Sequence[Path]) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(target, pyarrow.parquet.read_schema(parts[0])) as writer:
        for part in parts:
            writer.write_table(pyarrow.parquet.read_table(part))


def check_output(output: str) -> None:
    """Raises InputError for what cannot be written, before anything is read."""
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"output: {output} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or be -")
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise InputError(
            f"output: {output} is {'a folder' if path.is_dir() else 'not a file'}; give the name of a file"
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"output: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"output: {folder} cannot be written to; choose another folder")
