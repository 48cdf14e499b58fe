"""One file of any format: what its rows are, and what is said of a file that cannot be read."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from tasks.settings.fields import InputError
from tasks.sources.delimited import separator
from tasks.sources.formats import columns_of, notes_of, read_rows
from tasks.sources.kept import rows_of
from tasks.sources.opened import Broken
from tasks.sources.tables import sheet_rows, unsaved_formulas
from tests.test_data_splits import read as splits_of

TEXTS = ["a warm, funny film", 'he said "superb"', "über\nzwei Zeilen", "2026-01-02", "NA", "007"]
LABELS = ["0100", "007.1", "1", "01", "null", "None"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def frame() -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": LABELS})


def packed(name: str, content: bytes) -> bytes:
    match Path(name).suffix:
        case ".gz":
            return gzip.compress(content)
        case ".bz2":
            return bz2.compress(content)
        case ".xz":
            return lzma.compress(content)
        case ".zst":
            return bytes(pa.compress(content, "zstd", asbytes=True))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__MACOSX/._reviews.csv", "x")
        archive.writestr(f"folder/{Path(name).stem if Path(Path(name).stem).suffix else 'reviews.csv'}", content)
    return file.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda rows, path: rows.to_csv(path, index=False),
    ".tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    ".json": lambda rows, path: rows.to_json(path, orient="records", indent=2),
    ".jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    ".ndjson": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    ".parquet": lambda rows, path: rows.to_parquet(path),
    ".xlsx": lambda rows, path: rows.to_excel(path, index=False),
    ".feather": lambda rows, path: rows.to_feather(path),
    ".arrow": lambda rows, path: pa.ipc.new_stream(path, pa.Table.from_pandas(rows).schema).write(
        pa.Table.from_pandas(rows)
    ),
}


def write(name: str, folder: Path) -> Path:
    """The rows in the format, and packed, as the name says."""
    inner = Path(name).stem if Path(name).suffix in (".gz", ".bz2", ".xz", ".zst", ".zip") else name
    plain = folder / (inner if Path(inner).suffix else f"{inner}.csv")
    WRITERS[plain.suffix](frame(), plain)
    if inner != name:
        (folder / name).write_bytes(packed(name, plain.read_bytes()))
    return folder / name


NAMES = [
    *(f"a{kind}" for kind in WRITERS),
    *(f"a{kind}{pack}" for kind in (".csv", ".jsonl") for pack in (".gz", ".bz2", ".xz", ".zst", ".zip")),
    *("a.zip", "a.tsv.gz", "a.parquet.gz", "a.xlsx.zip", "a.feather.zst", "A.CSV.GZ"[:1] + ".json.xz"),
]


@pytest.mark.parametrize("name", NAMES)
def test_same_rows_are_the_same_texts_and_labels_in_every_format(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path)
    kept = rows_of([(path,)])
    assert list(kept["text"]) == TEXTS and list(kept["label"]) == LABELS
    one_by_one = [raw for raw, _ in read_rows(path)]
    assert one_by_one == [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    assert columns_of(path) in (["text", "label"], None)


def read(content: str | bytes, folder: Path, name: str = "a.csv") -> list[Any]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [raw for raw, _ in read_rows(path)]


# csv


def test_empty_cell_is_missing_and_every_other_one_is_text(tmp_path: Path) -> None:
    assert read('text,n,"",m\na,,1e5,\n"",true, ,-0\n', tmp_path) == [
        {"text": "a", "n": None, "unnamed 2": "1e5", "m": None},
        {"text": None, "n": "true", "unnamed 2": " ", "m": "-0"},
    ]


@pytest.mark.parametrize(
    ("content", "sep"),
    [
        ("text,label\na,1\n", ","),
        ("text;label\na;1\n", ";"),
        ("text\tlabel\na\t1\n", "\t"),
        ("text|label\na|1\n", "|"),
        ('"text";"label"\n"a, b";"1"\n', ";"),
        ("text,label\na; b; c,1\nd; e,2\n", ","),
        ("text;label\nyes, no, well;1\nno, no;2\n", ";"),
        ("id,text;comment,label\n1,a;b,2\n2,c,3\n", ","),
        ('text,label\n"a\tb",1\n"c\td",2\n', ","),
        ("text, german;label\na;1\nb;2\n", ";"),
        ("text;label\n1,5;a\n2,5;b\n", ";"),
        ("text\na;b\nc;d\n", ","),
        ("text\na film\n", ","),
        (",text,label\n0,a;b,1\n", ","),
        ('text;label\n"two\nlines; more";1\n', ";"),
        ("text,label\na,b,c\nd\n", ","),
        ("\ufefftext;label\na;1\n", ";"),
        ("sep=;\ntext;label\na;1\n", ";"),
        ("text;label", ";"),
        ("text, label\na, 1\n", ", "),
        ('text, label\n"a, b", "1"\n', ", "),
        ("id, text,label\n1, a,1\n", ","),
        ('"text, all"\na\n', ","),
        ("", ","),
    ],
)
def test_separator_is_the_one_that_fits_header_and_rows(content: str, sep: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert separator(path) == sep
    if content:
        said = {";": "';'", "|": "'|'", "\t": "a tab", ", ": "a comma and a space"}
        assert notes_of(path) == ([] if sep == "," else [f"a.csv has {said[sep]} between its columns"])
    if content.startswith("sep="):
        assert read(content, tmp_path) == [{"text": "a", "label": "1"}]


def test_space_after_each_separator_is_no_part_of_what_follows(tmp_path: Path) -> None:
    rows = read('text, label\n"a, b", "1"\n c , 2\n', tmp_path)
    assert rows == [{"text": "a, b", "label": "1"}, {"text": "c ", "label": "2"}]


def test_separator_of_a_tsv_is_reported_whatever_it_is(tmp_path: Path) -> None:
    for content, what in (("text\tlabel\na, b\t1\n", "a tab"), ("text,label\na,1\n", "a comma")):
        (tmp_path / "a.tsv").write_text(content)
        assert notes_of(tmp_path / "a.tsv") == [f"a.tsv has {what} between its columns"]


LONG = "".join(f"film number {row},{('bad', 'good')[row % 2]}\n" for row in range(30))


@pytest.mark.parametrize(
    "content",
    [
        "text,label\n" + LONG + '"an open quote,good\n' + LONG + 'it closes here",bad\n' + LONG,
        'text,label\n"an open quote,good\nthe next row,bad\nit closes here",bad\n' + LONG,
        "label,text\n" + "bad,dull\ngood,fine\n" * 9 + 'bad,"an open quote\ngood,fine\nbad,closed"\n',
        "text;label\n" + LONG.replace(",", ";") + '"open;good\ndull;bad\nclosed";bad\n',
        "text,label\n" + LONG + '"open,good\n' + LONG + 'and then "superb",bad\n',
        "text,label\n" + LONG + '"open,good\n' + LONG + '"quoted, well",bad\n' + LONG,
        "text,label\n" + LONG + '"open,good\n' + LONG,
        "text,label,n\n" + LONG.replace("\n", ",1\n") + '"open,good,1\nfine,bad,2\nclosed",bad\n',
    ],
)
def test_quote_that_takes_in_whole_rows_is_refused_by_its_row(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    before = next(n for n, line in enumerate(content.splitlines()) if "open" in line) - 1
    for read in (lambda path: rows_of([(path,)]), lambda path: list(read_rows(path))):
        with pytest.raises(
            InputError, match=rf"a\.csv: a quote is opened and never closed in row {before} \(line"
        ) as no:
            read(tmp_path / "a.csv")
        assert f"row {before} (line {before + 2})" in str(no.value)


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "Dear Sir, or Madam\nthank you, but no\nregards, me",
        "a list:\n- first, good\n- second, bad",
        'he said "no"\nand left, good',
        "\n\n",
        "one, two\r\nthree",
        'a 5" screen, and\n more',
    ],
)
def test_text_of_several_lines_is_one_text(text: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [*(["dull, but fine", "fine"] * 9), text], "label": [*(["good", "bad"] * 9), "good"]})
    rows.to_csv(tmp_path / "a.csv", index=False)
    assert list(rows_of([(tmp_path / "a.csv",)])["text"]) == rows["text"].tolist()


def test_quote_within_a_field_without_quotes_is_a_letter(tmp_path: Path) -> None:
    assert read('text,label\na 5" screen,1\nhe said "superb",2\n', tmp_path)[0]["text"] == 'a 5" screen'


def test_every_row_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\na,1\nb\nc,2,3\n"d" e,1\nf,1,2\n')
    with pytest.raises(InputError) as refused:
        rows_of([(tmp_path / "a.csv",)])
    said = str(refused.value)
    assert "row 1 has 1 field, and the header 2 (line 3); row 2 has 3 fields, and the header 2 (line 4)" in said
    assert "row 3 cannot be read: ',' expected after '\"' (line 5); a quote within a text is written twice" in said
    assert "; 1 more. Repair or remove them" in said


# json


def test_what_follows_an_array_is_refused(tmp_path: Path) -> None:
    assert read('[{"a": 1}]\n \n', tmp_path, "a.json") == [{"a": 1}]
    for rest in ('{"a": 2}', '[{"a": 2}]', "]", ",", " " * 200_000 + "x"):
        with pytest.raises(InputError, match="after the end of the array stands"):
            read('[{"a": 1}]\n' + rest, tmp_path, "a.json")


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [None, 2])
def test_table_that_pandas_writes_as_one_object_is_refused_with_what_to_write(
    orient: Any, indent: int | None, tmp_path: Path
) -> None:
    frame().to_json(tmp_path / "a.json", orient=orient, indent=indent)
    with pytest.raises(
        InputError, match=r"a\.json (is written by columns.*orient=\"records\"|holds its rows under 'data')"
    ) as no:
        list(read_rows(tmp_path / "a.json"))
    assert len(str(no.value)) < 300


def test_rows_beside_something_else_are_refused_with_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds its rows under 'data'; write that list alone"):
        read('{"version": 1, "data": [{"a": 1}]}', tmp_path, "a.json")


def test_first_of_several_objects_is_no_table(tmp_path: Path) -> None:
    assert len(read('{"messages": [{"a": 1}]}\n{"messages": [{"a": 2}]}\n', tmp_path, "a.jsonl")) == 2


def test_nan_of_json_is_nothing(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", '{"a": NaN}\n{"a": "b"}'), ("a.json", '[{"a": NaN}, {"a": "b"}]')):
        assert read(content, tmp_path, name) == [{"a": None}, {"a": "b"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_comma_too_many_is_shown(name: str, tmp_path: Path) -> None:
    content, says = {"a.jsonl": ('{"a": 1},\n', "row 0 .*','"), "a.json": ('[{"a": 1},]', "row 1 .*']'")}[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        rows_of([(tmp_path / name,)])


def test_array_in_a_jsonl_file_and_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    assert read('[\n{"a": 1},\n{"a": 2}\n]', tmp_path, "a.jsonl") == [{"a": 1}, {"a": 2}]
    assert read('{"a": 1}\n\n{"a": 2}\n', tmp_path, "a.json") == [{"a": 1}, {"a": 2}]
    assert read('{\n "a": 1\n}\n', tmp_path, "a.json") == [{"a": 1}]


def test_name_that_an_object_has_twice_is_a_fault(tmp_path: Path) -> None:
    (row,) = read('{"text": "a", "label": 0, "label": 1}', tmp_path, "a.jsonl")
    assert isinstance(row, Broken) and "the name 'label' is there twice" in row.fault


def test_dates_and_numbers_of_json_stay_what_they_are(tmp_path: Path) -> None:
    rows = [{"date": "2026-01-02T03:04:05", "label": label} for label in (0, "0", 1.0, True, None, "01")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept = rows_of([(tmp_path / "a.jsonl",)])
    assert list(kept["date"]) == ["2026-01-02T03:04:05"] * 6
    assert list(map(repr, kept["label"])) == ["0", "'0'", "1.0", "True", "None", "'01'"]


# Excel, text files


def test_sheet_is_text_as_it_shows(tmp_path: Path) -> None:
    rows = {"text": ["a", "10", None], "n": [1, 2.5, 3.0], "day": pd.to_datetime(["2026-01-02"] * 3), "b": [True] * 3}
    with pd.ExcelWriter(tmp_path / "a.xlsx") as book:
        pd.DataFrame(rows).to_excel(book, sheet_name="Reviews", index=False)
        pd.DataFrame(rows).to_excel(book, sheet_name="Notes")
    found = [raw for raw, _ in read_rows(tmp_path / "a.xlsx")]
    assert found[1] == {"text": "10", "n": "2.5", "day": "2026-01-02", "b": "True"}
    assert [row["n"] for row in found if isinstance(row, dict)] == ["1", "2.5", "3"] and found[2]["text"] is None
    assert notes_of(tmp_path / "a.xlsx") == ["of a.xlsx only the first sheet is read, 'Reviews', not 'Notes'"]


def sheet_with(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


HOLDS = "cell B3 of a.xlsx holds a formula without a stored value: open and save the file in Excel or LibreOffice"


def test_formula_that_nobody_calculated_is_named_where_its_cell_is_missed(tmp_path: Path) -> None:
    rows: list[list[object]] = [["text", "label", "more"], *([f"film {n}", "ab"[n % 2], "=1+1"] for n in range(40))]
    path = sheet_with(tmp_path / "a.xlsx", rows)
    assert not unsaved_formulas([path], ["text", "label"]) and "C2" in unsaved_formulas([path], ["more"])[0]
    assert splits_of(path).label_names == ("a", "b")  # a column that nobody uses stops nothing
    rows[2][1] = '=IF(1>2;"a";"b")'
    with pytest.raises(InputError, match=rf"1 row has no label \(train row 1\).*{HOLDS}, or save it as csv"):
        splits_of(sheet_with(path, rows))
    rows[2][:] = ["=A1", '=IF(1>2;"a";"b")', "=1"]  # nothing else in the row: it is a row all the same
    with pytest.raises(InputError, match=rf"train row 1\b.*{HOLDS.replace('B3', 'A3')}"):
        splits_of(sheet_with(path, rows))
    rows[2][:] = [None, None, None]
    assert len(list(sheet_rows(sheet_with(path, rows)))) == 39


def test_columns_that_are_in_another_sheet_are_missed_with_the_sheets_named(tmp_path: Path) -> None:
    with pd.ExcelWriter(tmp_path / "a.xlsx") as book:
        pd.DataFrame({"info": ["x"]}).to_excel(book, sheet_name="Read me", index=False)
        frame().to_excel(book, sheet_name="Data", index=False)
    with pytest.raises(
        InputError, match=r"no column 'text'; it has info; .*only the first sheet is read, 'Read me', not"
    ):
        splits_of(tmp_path / "a.xlsx")


def test_names_once_more_are_no_row(tmp_path: Path) -> None:
    rows = [["text", "label"], ["a", "b"], ["text", "label"], ["c", "d"]]
    sheet_with(tmp_path / "a.xlsx", rows)
    (tmp_path / "a.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    for name, where in (("a.xlsx", ""), ("a.csv", " (line 3)")):
        found = [raw for raw, _ in read_rows(tmp_path / name)]
        assert isinstance(found[1], Broken) and found[1].fault == f"has the names of the columns once more{where}"
        assert [row for row in found if isinstance(row, dict)] == [
            {"text": "a", "label": "b"},
            {"text": "c", "label": "d"},
        ]


def test_comma_after_each_object_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1},\n{"a": 2}\n')
    (broken, _), (row, _) = read_rows(tmp_path / "a.jsonl")
    assert isinstance(broken, Broken) and "leave out the comma after it (line 1)" in broken.fault and row == {"a": 2}


def test_text_file_is_a_row_of_the_class_of_its_folder(tmp_path: Path) -> None:
    for name, text in (("pos/2.txt", "\ufefffine\n"), ("neg/1.txt", "dull\n\nvery")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    kept = rows_of([(tmp_path / "neg/1.txt", tmp_path / "pos/2.txt")])
    assert [*kept] == [
        {"text": "dull\n\nvery", "label": "neg", "id": "neg/1.txt"},
        {"text": "fine", "label": "pos", "id": "pos/2.txt"},
    ]
    (tmp_path / "pos/2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"pos/2\.txt is not UTF-8.*Latin-1"):
        rows_of([(tmp_path / "neg/1.txt", tmp_path / "pos/2.txt")])


# what cannot be read


CSV = "text,label\n" + LONG


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", CSV.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.csv", CSV.encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
        ("a.csv", (CSV + "a café,good\n").encode("latin-1"), "row 30 is not UTF-8.*save the file as UTF-8.*Latin-1"),
        ("a.json", b"\xff\xfe[\x00", "is UTF-16"),
        ("a.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), "row 0 is not UTF-8"),
        ("a.csv", bytes(500), "zero bytes"),
        ("a.csv", gzip.compress(CSV.encode()), r"gzip; its name should end in \.gz"),
        ("a.csv", b"PK\x03\x04xx", r"Excel file; its name should end in \.zip or \.xlsx"),
        ("a.csv", b"\xd0\xcf\x11\xe0", "an old Excel file; save it as"),
        ("a.csv", b"PAR1xxx", r"parquet; its name should end in \.parquet"),
        ("a.csv.gz", CSV.encode(), "a.csv.gz cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 99)[:-20], "a.csv.gz cannot be read"),
        ("a.csv.bz2", b"x", "a.csv.bz2 cannot be read"),
        ("a.csv.xz", b"x", "a.csv.xz cannot be read"),
        ("a.csv.zst", b"x", "a.csv.zst cannot be read"),
        ("a.csv.zip", b"PK", "a.csv.zip cannot be read"),
        ("a.xlsx", b"x", "a.xlsx cannot be read"),
        ("a.xlsx", packed("a.csv.zip", b"x"), "a.xlsx cannot be read"),
        ("a.feather", b"x" * 99, "a.feather cannot be read"),
        ("a.jsonl", b'["a", 1]\n["b", 2]\n', r"a.jsonl: after the end .*; write each row as an object with names"),
        ("a.feather", b"FEA1xxxx", "it is Feather V1, which is given up; write it anew"),
        ("a.arrow", b"ARROW1" + bytes(99), "a.arrow cannot be read"),
        ("a.parquet", b"x" * 99, "a.parquet cannot be read"),
        ("a.csv", b"text,text\na,b\n", "'text' twice"),
        ("a.csv", b"text\n" + b"x" * 10_000_001, "10,000,000 characters in line 2"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_read_is_refused_in_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        rows_of([(tmp_path / name,)])
    assert name in str(refused.value) and len(str(refused.value)) < 400


def test_zip_file_must_hold_one_file_of_data(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("train.csv", "test.csv", "notes.md"):
            archive.writestr(name, CSV)
    with pytest.raises(InputError, match=r"one file of data, not train\.csv, test\.csv, notes\.md; unpack it"):
        list(read_rows(tmp_path / "a.zip"))
