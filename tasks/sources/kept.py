"""The rows of a data file as Arrow on disk: each file is read once, and known by its content from then on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.base.files import whole
from tasks.base.records import digest, file_sha256
from tasks.settings.fields import InputError
from tasks.sources.folders import Piece
from tasks.sources.formats import read_rows
from tasks.sources.opened import Broken, clean, kind_of, readable
from tasks.sources.tables import TABLES, plain, table

BATCH_ROWS = 10_000
"""Python objects of so many rows are in memory at once."""

MOST_SHOWN = 3
"""Of rows that cannot be read."""

MOST_APART = 500
"""Files of a split that are kept one by one. Each stays open, and a process may have about 1,000 open."""

Kinds = dict[str, str]
"""What each column holds: null, bool, int, float, text, or json for everything else and what is mixed."""


def rows_of(pieces: Sequence[Piece], sep: str | None = None) -> Any:
    """The rows of a split as a `datasets.Dataset` that lies on disk; InputError names file and row."""
    if len(pieces) <= MOST_APART:
        return together([on_disk(place_of([piece], sep), piece, partial(write, piece, sep)) for piece in pieces])
    groups = [pieces[start : start + MOST_APART] for start in range(0, len(pieces), MOST_APART)]
    return together([on_disk(place_of(group, sep), group[0], partial(write_group, group, sep)) for group in groups])


READERS = ("kept", "formats", "opened", "delimited", "jsonrows", "tables")
"""Files of this program that decide what the rows of a file are."""


def place_of(pieces: Sequence[Piece], sep: str | None) -> Path:
    """Where rows are kept: it is named by the content of their files and by how they are read."""
    import datasets
    import pyarrow

    program = [Path(__file__).with_name(f"{name}.py").read_text() for name in READERS]
    files = [
        (kind_of(path), file_sha256(path), (path.parent.name, path.name) if path.suffix.lower() == ".txt" else "")
        for piece in pieces
        for path in piece
    ]
    name = digest([pyarrow.__version__, datasets.__version__, program, sep, files])
    return Path(datasets.config.HF_DATASETS_CACHE) / "files" / name


def on_disk(place: Path, piece: Piece, write: Callable[[Path], None]) -> Any:
    from datasets import Dataset

    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place, 2 * sum(path.stat().st_size for path in piece)) as staged:
            write(staged)
    return Dataset.from_file(str(place))


def write_group(pieces: Sequence[Piece], sep: str | None, place: Path) -> None:
    rows = rows_of(pieces, sep)
    with arrow_stream(place, rows.features.arrow_schema) as stream:
        stream.write_table(rows.data.table)


def together(parts: Sequence[Any]) -> Any:
    """The rows of all parts, in the columns that all have; what is of different kinds in them is made alike."""
    from datasets import Features, concatenate_datasets

    parts = [part for part in parts if len(part)] or parts[:1]
    names = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    features = Features({name: alike([part.features[name] for part in parts]) for name in names})
    return concatenate_datasets([as_kinds(part.select_columns(names), features) for part in parts])


def alike(features: Sequence[Any]) -> Any:
    """The kind of a column whose kinds in several files are these."""
    from datasets import ClassLabel, Json, Value

    first, *others = [kind for kind in features if kind != Value("null")] or features
    if isinstance(first, ClassLabel) or all(kind == first for kind in others):
        return first
    names = {str(getattr(kind, "dtype", "")) for kind in (first, *others)}
    for number in ("int", "float"):
        if all(name.startswith(("int", "uint", number)) for name in names):
            return Value(f"{number}64")
    return Json()


def as_kinds(part: Any, features: Any) -> Any:
    """The same rows, with columns of these kinds."""
    if part.features == features:
        return part
    files = tuple(Path(file["filename"]) for file in part.cache_files)
    place = files[0].with_name(digest([[file.name for file in files], repr(features)]))
    return on_disk(place, files, partial(write_kinds, part, features))


def write_kinds(part: Any, features: Any, place: Path) -> None:
    import pyarrow
    from datasets import Json

    with arrow_stream(place, features.arrow_schema) as stream:
        for batch in part.iter(BATCH_ROWS):
            columns = []
            for name, kind in features.items():
                if isinstance(kind, Json):
                    columns.append(json_array(batch[name]))
                else:  # of class names the numbers
                    encode = getattr(kind, "encode_example", lambda value: value)
                    values = [None if value is None else encode(value) for value in batch[name]]
                    columns.append(pyarrow.array(values, features.arrow_schema.field(name).type))
            stream.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=features.arrow_schema))


def write(piece: Piece, sep: str | None, place: Path) -> None:
    with readable(piece[0]):
        if kind_of(piece[0]) in TABLES:
            write_table(piece[0], place)
        elif grown := write_rows(piece, sep, place, {}):
            write_rows(piece, sep, place, grown)


@contextmanager
def arrow_stream(place: Path, schema: Any) -> Iterator[Any]:
    import pyarrow

    with pyarrow.OSFile(str(place), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        yield stream


def write_table(path: Path, place: Path) -> None:
    import pyarrow
    from datasets import Features

    with table(path) as (schema, batches):
        empty = [plain(pyarrow.array([], field.type)) for field in schema]
        fields = [field.with_type(column.type) for field, column in zip(schema, empty, strict=True)]
        schema = Features.from_arrow_schema(pyarrow.schema(fields, schema.metadata)).arrow_schema
        with arrow_stream(place, schema) as stream:
            for batch, _ in batches(schema.names):
                columns = [plain(batch.column(field.name)).cast(field.type) for field in schema]
                stream.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=schema))


def write_rows(piece: Piece, sep: str | None, place: Path, kinds: Kinds) -> Kinds | None:
    """Write what is read row by row; None where all is written. Where columns turned out to hold more than the first
    rows let expect: what they hold, to begin again."""
    import pyarrow
    from datasets import Features

    rows, start = whole_rows(piece, sep), 0
    batch = list(islice(rows, BATCH_ROWS))
    grown = kinds = merged(kinds, batch)
    features = Features({name: feature(kind) for name, kind in kinds.items()})
    with arrow_stream(place, features.arrow_schema) as stream:
        while batch:
            if (grown := merged(grown, batch)) == kinds:
                columns = [arrow(name, kind, batch, piece, start) for name, kind in kinds.items()]
                stream.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=features.arrow_schema))
            start, batch = start + len(batch), list(islice(rows, BATCH_ROWS))
    return None if grown == kinds else grown


def whole_rows(piece: Piece, sep: str | None) -> Iterator[Mapping[str, Any]]:
    """Each row; at the end, InputError that names those that cannot be read."""
    broken: list[str] = []
    for number, (raw, _) in enumerate(chain.from_iterable(read_rows(path, sep=sep) for path in piece)):
        if isinstance(raw, Broken):
            broken.append(f"row {number} {raw.fault}")
        else:
            yield raw
    if broken:
        more = f"; {len(broken) - MOST_SHOWN:,} more" if len(broken) > MOST_SHOWN else ""
        raise InputError(f"data.name: {piece[0]}: {'; '.join(broken[:MOST_SHOWN])}{more}. Repair or remove them")


def merged(kinds: Kinds, rows: Sequence[Mapping[str, Any]]) -> Kinds:
    """What the columns hold with these rows too."""
    names = dict.fromkeys(chain(kinds, *rows))
    return {name: both(kinds.get(name, "null"), kind_of_values(name, rows)) for name in names}


def both(kind: str, other: str) -> str:
    if kind == other or other == "null":
        return kind
    return other if kind == "null" else "float" if {kind, other} == {"int", "float"} else "json"


def kind_of_values(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    values = [row.get(name) for row in rows]
    found = {kind.__name__ for kind in set(map(type, values))} - {"NoneType"}
    if not found:
        return "null"
    if "int" in found and any(isinstance(value, int) and abs(value) > MOST_EXACT for value in values):
        return "json"
    kinds = {"str": "text", "bool": "bool", "int": "int", "float": "float"}
    return kinds.get(found.pop(), "json") if len(found) == 1 else "float" if found == {"int", "float"} else "json"


MOST_EXACT = 2**53
"""Larger whole numbers are no floats."""


def feature(kind: str) -> Any:
    from datasets import Json, Value

    names = {"null": "null", "bool": "bool", "int": "int64", "float": "float64", "text": "string"}
    return Json() if kind == "json" else Value(names[kind])


def arrow(name: str, kind: str, rows: Sequence[Mapping[str, Any]], piece: Piece, start: int) -> Any:
    """A column; InputError for what is not text, although it should be."""
    import pyarrow

    values = [row.get(name) for row in rows]
    if kind == "json":
        return json_array(values)
    try:
        return pyarrow.array(values, feature(kind)())
    except UnicodeEncodeError:
        place = next(place for place, text in enumerate(values) if text and clean(text) != text)
        file, row = (piece[start + place], "") if len(piece) > 1 else (piece[0], f": row {start + place}")
        raise InputError(
            f"data.name: {file}{row} is not UTF-8 in column {name!r:.80}; save the file as UTF-8 (it may be Latin-1 or "
            "Windows-1252 now)"
        ) from None


def json_array(values: Sequence[Any]) -> Any:
    """Not by `datasets`, which takes the text "0" for the number."""
    import pyarrow

    texts = pyarrow.array([None if value is None else as_json(value) for value in values], pyarrow.string())
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), texts)


def as_json(value: Any) -> str:
    """As `datasets` can read it again, which takes no whole number beyond 64 bits."""
    from datasets.utils.json import ujson_loads

    text = json.dumps(value, default=str)
    try:
        ujson_loads(text)
        return text
    except ValueError:
        return json.dumps(str(value))
