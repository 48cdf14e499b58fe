"""The faults of tests/mutations.py fit the code as it is now; that tests catch them is for that program to show."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutations import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.words)
def test_fault_has_its_place_and_still_compiles(fault: Fault) -> None:
    source = (ROOT / fault.path).read_text(encoding="utf-8")
    compile(fault.within(source), fault.path, "exec")


def test_faults_are_thirty_in_all_wings() -> None:
    wings = {path.parent.name for path in ROOT.glob("tasks/*/__init__.py")}
    assert len(FAULTS) == 30
    assert {fault.wing for fault in FAULTS} == wings
    assert len(wings) == 15


def test_fault_for_other_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks/base/words.py has 2 times, not once: 'a'"):
        FAULTS[0]._replace(old="a").within("aa")


def test_tests_that_are_asked_first_are_there() -> None:
    named = [name for fault in FAULTS for name in fault.asked.split() if name.startswith("tests/")]
    assert named
    assert [name for name in named if not Path(ROOT, name).is_file()] == []


def test_documentation_has_every_fault_and_the_test_that_caught_it() -> None:
    page = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| +(\d+) +\| (.+?) +\| (tasks/\S+) +\| `(test_\w+)` +\|$", page, re.MULTILINE)
    assert [row[:3] for row in written] == [(f"{n}", fault.words, fault.path) for n, fault in enumerate(FAULTS, 1)]
    tests = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/test_*.py"))
    assert [row[3] for row in written if f"def {row[3]}(" not in tests] == []
