"""docs/support.md says what was tried, and nothing else."""

import time
from pathlib import Path
from typing import Any

import pytest

from tasks.settings.methods import METHODS, ON_QUANTIZED
from tests import support, support_page
from tests.support import apart, families, try_all, try_one
from tests.support_page import METHOD_FAMILIES, NF4_STEPS, STEPS, WORKS, read_page, write_page


def test_page_lists_every_family_and_method_and_no_failure() -> None:
    page = read_page()
    assert list(page["family"]) == families()
    assert all(list(page[table]) == list(METHODS) for table in METHOD_FAMILIES)
    cells = [cell for rows in page.values() for row in rows.values() for cell in row.values()]
    assert not [cell for cell in cells if "FAILS" in cell]
    tried = [name for name, row in page["family"].items() if not row["trains"].startswith("not tried")]
    assert len(tried) >= 120


@pytest.mark.parametrize("table", METHOD_FAMILIES)
def test_each_step_of_each_method_works_or_is_refused(table: str) -> None:
    """A cell is empty only after one that did not work, or beside a base model that the method does not take."""
    for method, row in read_page()[table].items():
        for steps in (STEPS, tuple(NF4_STEPS)):
            reached = [row[step] for step in steps if step in row]
            assert reached and all(cell == WORKS for cell in reached[:-1]), method
            assert len(reached) == len(steps) or reached[-1].startswith("refused: "), method
        works_on_quantized = row["nf4 trains"] == WORKS
        assert works_on_quantized == (method in ON_QUANTIZED and row["trains"] == WORKS), method


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of this test's own, which begins as the real one."""
    tables = read_page()
    monkeypatch.setattr(support_page, "PAGE", tmp_path / "page.md")
    write_page(tables)
    return tmp_path / "page.md"


def test_rows_are_read_as_they_were_written(page: Path) -> None:
    tables = read_page()
    tables["bert"]["lora"] = {"trains": WORKS, "ONNX": "refused: because"}
    write_page(tables)
    assert read_page() == tables
    assert "refused: because" not in page.read_text(), "long lines stand below the tables"


def test_parts_that_are_not_asked_for_are_kept(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_page()
    monkeypatch.setattr(support, "apart", lambda work: {"trains": "refused: it is a test"})
    try_all(["nf4"], ["lora"])
    after = read_page()
    assert after["bert"]["lora"] == {step: before["bert"]["lora"][step] for step in STEPS} | {
        "nf4 trains": "refused: it is a test"
    }
    for table in METHOD_FAMILIES:
        del before[table]["lora"], after[table]["lora"]
    assert after == before


def test_what_hangs_is_not_waited_for_and_keeps_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "SECONDS", 1)

    def hang(note: Any) -> Any:
        note({"trains": WORKS})
        time.sleep(60)

    assert apart(hang) == {"trains": WORKS, "read back": "not tried: no answer in 1 s"}
    assert apart(lambda note: {"trains": WORKS}) == {"trains": WORKS}


def test_a_row_of_families_is_of_lora(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "apart", lambda work: work(note=lambda row: None))
    monkeypatch.setattr(support, "take_through", lambda here, model, method: iter([("trains", f"refused: {method}")]))
    try_all(["families"], ["bert"])
    assert read_page()["family"]["bert"] == {"trains": "refused: lora"}


def without_numbers(cell: str) -> str:
    return cell.partition(" (")[0]


@pytest.mark.endurance
@pytest.mark.parametrize(
    "family", ["bert", "gpt2", "t5", "xlnet", "big_bird", "mixtral", "phimoe", "gemma3", "squeezebert", "fnet", "xmod"]
)
def test_page_is_what_a_trial_gives(family: str) -> None:
    page, row = read_page()["family"][family], try_one(family)
    assert {name: without_numbers(cell) for name, cell in row.items()} == {
        name: without_numbers(cell) for name, cell in page.items()
    }


@pytest.mark.endurance
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(("method", "family"), [("dora", "bert"), ("ia3", "llama"), ("boft", "gpt2"), ("vera", "gpt2")])
def test_page_is_what_a_trial_of_a_method_gives(method: str, family: str, quantization: str) -> None:
    page, row = read_page()[family][method], try_one(family, method, quantization=quantization)
    columns = NF4_STEPS if quantization == "nf4" else {step: step for step in STEPS}
    found = {column: without_numbers(row[step]) for column, step in columns.items() if step in row}
    assert found == {column: without_numbers(page[column]) for column in columns if column in page}
