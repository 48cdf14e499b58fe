"""Records, and the small functions that name and keep them."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.base.outcomes import Footprint, RunScores
from tasks.base.records import Interval, Point, digest, file_sha256, read_record


def test_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    interval = Interval(value=0.1 + 0.2, low=1e-12, high=1 / 3)
    interval.write(tmp_path / "interval.json")
    assert Interval.model_validate_json((tmp_path / "interval.json").read_bytes()) == interval


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_reads_back(value: float, tmp_path: Path) -> None:
    """A gradient norm or a loss may be infinite in a training that ends well: it must not be done again for that."""
    interval = Interval(value=value, low=-value, high=value)
    records = (
        interval,
        Point(step=1, metrics={"train/grad_norm": value}),
        Footprint(latency_ms=value, memory_mb=1),
        RunScores(run_id="a", name="a", scores={"log_loss": interval}),
    )
    for record in records:
        record.write(tmp_path / "record.json")
        json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)  # of JSON's own kinds only
        again = read_record(type(record), tmp_path / "record.json")
        assert again and again.model_dump_json() == record.model_dump_json()
    assert math.isnan(records[0].value) if math.isnan(value) else records[0].value == value


def test_record_cannot_be_changed_or_extended() -> None:
    interval = Interval(value=1, low=1, high=1)
    with pytest.raises(ValidationError):
        interval.low = 0.5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Interval(value=1, low=1, high=1, middle=1)  # type: ignore[call-arg]


def test_digest_depends_on_content_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest([])) == 16


def test_file_sha256_is_that_of_its_bytes(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "file").write_bytes(b"content")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
