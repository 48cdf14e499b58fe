"""The pictures of a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import plots
from tasks.comparison import Predictions
from tasks.config import validated
from tasks.records import Comparison, Interval, Point, PreparedData, Scores, Source, TrainedAdapter


def a_run(classes: int) -> tuple[PreparedData, Predictions, Comparison, TrainedAdapter]:
    """Records of a made-up run with 300 test rows."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 300)
    tables = [generator.dirichlet(np.ones(classes), 300) for _ in range(2)]
    scores, interval = Scores(accuracy=0.5, macro_f1=0.5, log_loss=0.7), Interval(value=0.1, low=0.0, high=0.2)
    data = PreparedData(
        folder="",
        source=Source(name="d", revision="r", is_local=True, local_files_only=True),
        model=Source(name="m", revision="r", is_local=True, local_files_only=True),
        fingerprint="f",
        label_names=tuple(f"a rather long class name {i}" for i in range(classes)),
        text_columns=("text",),
        class_counts={split: (300,) for split in ("train", "validation", "test")},
        truncated=0,
        notes=(),
    )
    result = Comparison(
        folder="",
        rows=300,
        verdict="no evidence",
        baseline=scores,
        tuned=scores,
        accuracy=interval,
        macro_f1=interval,
        log_loss=interval,
        p_value=0.5,
        fixed=1,
        broken=1,
        references={"majority": scores},
    )
    trained = TrainedAdapter(
        folder="",
        sha256="s",
        probe="",
        history=(Point(step=1, metrics={"train/loss": 0.7}), Point(step=2, metrics={"validation/loss": 0.6})),
        trainable_parameters=1,
        total_parameters=2,
        target_modules=(),
        fresh_modules=(),
        steps=2,
        best_step=2,
        seconds=1,
        examples_per_second=1,
        peak_memory_mb=1,
    )
    return data, Predictions(labels, *tables), result, trained


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_every_picture_is_drawn_at_a_readable_size(classes: int, tmp_path: Path) -> None:
    plots.draw_all(tmp_path, *a_run(classes))
    files = sorted(tmp_path.glob("*.png"))
    assert [file.name for file in files] == ["confusion_matrices.png", "learning_curves.png", "scores.png"]
    for file in files:
        with Image.open(file) as picture:
            assert 600 <= picture.width <= 4000
            assert 200 <= picture.height <= 3000


def test_same_run_draws_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plots.draw_all(tmp_path / name, *a_run(3))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_card_says_nothing_of_an_untrained_head_where_there_is_none() -> None:
    from tasks.card import model_card

    data, _, result, trained = a_run(2)
    fresh = trained.model_copy(update={"fresh_modules": ("score",)})
    assert "head is untrained" in model_card(validated({}), data, fresh, result)
    own = model_card(validated({}), data, trained, result)
    assert "head is untrained" not in own
    assert "head of its own" in own
