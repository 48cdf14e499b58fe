"""Records, and the small functions that name and keep them."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.base.outcomes import Footprint, RunScores
from tasks.base.records import Interval, Point, Scores, digest, file_sha256, read_record


def test_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    scores = Scores(accuracy=0.1 + 0.2, macro_f1=1 / 3, log_loss=1e-12)
    scores.write(tmp_path / "scores.json")
    assert Scores.model_validate_json((tmp_path / "scores.json").read_bytes()) == scores


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_reads_back(value: float, tmp_path: Path) -> None:
    """A gradient norm or a loss may be infinite in a training that ends well: it must not be done again for that."""
    scores = Scores(accuracy=1, macro_f1=1, log_loss=value)
    records = (
        scores,
        Point(step=1, metrics={"train/grad_norm": value}),
        Footprint(latency_ms=value, memory_mb=1),
        RunScores(run_id="a", name="a", scores=scores, accuracy=Interval(value=1, low=-value, high=value)),
    )
    for record in records:
        record.write(tmp_path / "record.json")
        json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)  # of JSON's own kinds only
        again = read_record(type(record), tmp_path / "record.json")
        assert again and again.model_dump_json() == record.model_dump_json()
    assert math.isnan(records[0].log_loss) if math.isnan(value) else records[0].log_loss == value


def test_record_cannot_be_changed_or_extended() -> None:
    scores = Scores(accuracy=1, macro_f1=1, log_loss=0)
    with pytest.raises(ValidationError):
        scores.accuracy = 0.5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Scores(accuracy=1, macro_f1=1, log_loss=0, f2=1)  # type: ignore[call-arg]


def test_digest_depends_on_content_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest([])) == 16


def test_file_sha256_is_that_of_its_bytes(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "file").write_bytes(b"content")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
