"""The data check's page: warnings first, tables that no text can break."""

from pathlib import Path
from typing import Any

import pandas as pd

from tasks.data import datapage
from tasks.data.datacheck import read_check
from tasks.data.datapage import check_page, shares
from tasks.data.prepare import prepare
from tasks.settings.loading import validated
from tests.test_data_splits import film_reviews, write


def page_of(folder: Path, foundation: Any, train: pd.DataFrame, test: pd.DataFrame) -> str:
    """The page as the task makes it."""
    for name, frame in (("train", train), ("validation", film_reviews(10)[108:]), ("test", test)):
        write(frame, folder / f"{name}.csv")
    config = validated({"model": {"name": str(foundation("bert"))}, "data": {"name": str(folder), "max_length": 32}})
    data = prepare(config, folder / "work")
    tables = (Path(data.folder) / "data_check.md").read_text()
    return check_page("films", read_check(config, data).warnings, "What the rows show.", tables)


def test_page_tells_warnings_then_tables(foundation: Any, tmp_path: Path) -> None:
    frame = film_reviews(10)
    page = page_of(tmp_path, foundation, frame[:72], pd.concat([frame[72:96], frame[:1]]))
    places = [
        page.index(part)
        for part in (
            "# Data check: films",
            "- Leakage: the text of 1 of 25 test rows is also in train (test row 24; train row 0)",
            "What the rows show.",
            "## Splits",
            "## Texts that several rows have",
            "## Token lengths",
        )
    ]
    assert places == sorted(places)
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in page.splitlines()
        if "|" in line
    }
    assert cells["train"][:5] == ["72", "bad 50.0 %, good 50.0 %", "0", "", "0.0 %"]
    assert cells["test"][:5] == ["25", "bad 52.0 %, good 48.0 %", "0", "1", "0.0 %"]
    assert cells["a cold and tedious film"] == ["train 0 'bad', test 24 'bad'"]
    shortest, median, longest = (int(number) for number in cells["test"][5].split("/"))
    assert 0 < shortest <= median <= longest


def test_page_of_clean_data_says_so(foundation: Any, tmp_path: Path) -> None:
    frame = film_reviews(10)
    page = page_of(tmp_path, foundation, frame[:72], frame[72:96])
    assert "None: no text is there twice" in page
    assert check_page("films", (), "", "").endswith("\n\nNothing to warn of.")


def test_texts_cannot_break_out_of_their_table(foundation: Any, tmp_path: Path) -> None:
    frame = film_reviews(10)
    nasty = pd.DataFrame({"text": ["a | b\n<script>alert(1)</script>"], "label": ["bad"]})
    page = page_of(tmp_path, foundation, pd.concat([frame[:72], nasty]), pd.concat([frame[72:96], nasty]))
    assert "<script>" not in page
    (line,) = [line for line in page.splitlines() if "script" in line]
    assert line.replace("\\|", "").count("|") == 3


def test_fifty_texts_are_shown_and_the_others_counted(foundation: Any, tmp_path: Path) -> None:
    frame = film_reviews(10)
    page = page_of(tmp_path, foundation, pd.concat([frame[:72], frame[:60]]), frame[72:96])
    assert page.count(", train ") >= datapage.TEXTS_SHOWN
    assert page.count("'bad', train ") + page.count("'good', train ") == datapage.TEXTS_SHOWN
    assert "60 texts, equal but for" in page and "And 10 more." in page


def test_many_classes_are_summed_up() -> None:
    import numpy as np

    counts = np.array([1, 2, 3, 4, 5, 5])
    assert shares(counts / 20, list("abcdef")) == "6, 5.0 % to 25.0 % each"
