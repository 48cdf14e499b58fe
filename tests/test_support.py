"""docs/support.md says what was tried, and nothing else."""

from typing import Any

import pytest

from tasks.settings.methods import METHODS
from tests.support import COLUMNS, METHOD_FAMILIES, STEPS, families, read_page, summary, try_one


def test_page_lists_every_family_and_method_and_no_failure() -> None:
    page = read_page()
    assert list(page["family"]) == families() and set(page["method"]) == set(METHODS)
    cells = [cell for rows in page.values() for row in rows.values() for cell in row.values()]
    assert not [cell for cell in cells if "FAILS" in cell]
    tried = [name for name, row in page["family"].items() if not row["trains"].startswith("not tried")]
    assert len(tried) >= 120
    assert all(set(row) == set(METHOD_FAMILIES) for row in page["method"].values())


def test_rows_are_read_as_they_were_written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import support

    page = read_page()
    monkeypatch.setattr(support, "PAGE", tmp_path / "page.md")
    support.write_page(page)
    assert read_page() == page and set(COLUMNS["family"]) >= set(STEPS)


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
@pytest.mark.parametrize(("method", "family"), [("dora", "bert"), ("ia3", "llama"), ("boft", "gpt2"), ("vera", "gpt2")])
def test_page_is_what_a_trial_of_a_method_gives(method: str, family: str) -> None:
    assert without_numbers(summary(try_one(family, method))) == without_numbers(read_page()["method"][method][family])
