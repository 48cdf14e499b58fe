"""A learning curve: sizes and draws that hold each other, words that follow from the numbers, and one whole study."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from flows.cli import USER_MUST_CHANGE, main
from tasks.base.outcomes import CurvePoint, LearningCurveResult
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tests.conftest import sentences, without_pictures
from tests.test_studies_seeds import client, runs_of, write_run

FALLING = ((68, 69, 70), (74, 75, 76), (79, 80, 81), (83, 84, 85))
"""Rows of 100 that are right, for each number of rows and seed."""


def judge(folder: Path, rights: Sequence[Sequence[int]] = FALLING, counts: Sequence[int] = (100, 200, 400, 800)) -> Any:
    from tasks.studies.learning_curve import judge_curve

    results = [
        [write_run(folder / f"{count}-{seed}", right, tfidf=0.5) for seed, right in enumerate(same)]
        for count, same in zip(counts, rights, strict=True)
    ]
    return judge_curve("p" * 32, validated({"seed": 7}), counts, results)


def test_curve_has_each_number_of_rows_with_the_mean_and_spread_of_its_runs(tmp_path: Path) -> None:
    result = judge(tmp_path)
    assert [point.rows for point in result.points] == [100, 200, 400, 800]
    assert [point.score.mean.value for point in result.points] == pytest.approx([0.69, 0.75, 0.80, 0.84])
    first = result.points[0]
    assert first.score.deviation == pytest.approx(0.01)
    assert first.score.mean.low == pytest.approx(0.69 - 4.3027 * 0.01 / 3**0.5, abs=1e-4)
    assert [(run.seed, run.score) for run in first.runs] == [(7, 0.68), (8, 0.69), (9, 0.70)]
    assert (result.rows, result.task, result.seconds) == (100, "single_label", 24)


def test_page_says_what_twice_the_rows_would_bring_and_what_half_of_them_said(tmp_path: Path) -> None:
    from tasks.studies.learning_curve import check_sentence, curve_markdown, next_sentence

    result = judge(tmp_path)
    step, check = result.next, result.check
    assert (step.rows, step.unknown, check.rows, check.unknown) == (1600, "", 800, "")
    assert 0 < step.change.low < step.change.value < step.change.high < 0.06
    then = 0.84 + step.change.value
    assert f"(1,600) would bring accuracy from 0.840 to about {then:.3f}: +" in next_sentence(result)
    assert "from 100 to 400 rows alone" in check_sentence(result)
    assert "all 800 brought +0.040, inside that interval" in check_sentence(result)
    page = curve_markdown(validated({}), result)
    assert page.startswith(f"# Twice the rows: {step.change.value:+.3f} (") and "learning curve, 3 seeds" in page
    for words in (next_sentence(result), check_sentence(result), "| 0.680, 0.690, 0.700 "):
        assert words in page
    assert all(run.run_id in page for point in result.points for run in point.runs)


@pytest.mark.parametrize(
    ("rights", "why"),
    [
        (((70, 75, 80), (71, 75, 79), (70, 76, 79), (70, 76, 80)), "do not improve with more rows"),
        (((50, 51, 49), (50, 50, 51), (80, 81, 80), (90, 91, 90)), "do not follow a power law"),
        (((50, 50, 50), (60, 60, 60), (70, 70, 70), (80, 80, 80)), "score the same on these test rows"),
        (((70, 71, 72), (90, 91, 92), (98, 99, 99), (100, 100, 100)), "there is no error left on these test rows"),
    ],
)
def test_what_cannot_be_told_is_not_told(rights: Any, why: str, tmp_path: Path) -> None:
    from tasks.studies.learning_curve import curve_figure, curve_markdown, next_sentence

    result = judge(tmp_path, rights)
    assert result.verdict == "twice the rows: cannot be told"
    assert why in result.next.unknown
    assert f"(1,600) would bring cannot be told: {result.next.unknown}" in next_sentence(result)
    assert "# Twice the rows: cannot be told: " in curve_markdown(validated({}), result)
    assert "expected from all points" not in curve_figure(result).axes[0].get_legend_handles_labels()[1]


def test_noise_that_hides_the_curve_still_bounds_it(tmp_path: Path) -> None:
    from tasks.studies.learning_curve import next_sentence

    result = judge(tmp_path, ((70, 75, 80), (71, 75, 79), (70, 76, 79), (70, 76, 80)))
    assert result.next.change.low == 0
    assert f"(a change beyond {result.next.change.high:+.3f} does not fit them)" in next_sentence(result)


def test_score_of_which_less_is_better_falls() -> None:
    from tasks.scores.objective import objective
    from tasks.studies.learning_curve import doubling, few_words

    metric = objective("regression").metrics[0]
    assert not metric.higher_is_better
    step = doubling(metric, points((0.99, 1.0, 1.01), (0.84, 0.85, 0.86), (0.73, 0.74, 0.75), (0.65, 0.66, 0.67)), 0.95)
    assert step.change and step.change.low < step.change.value < step.change.high < 0
    assert few_words(metric, step).startswith("-0.0") and few_words(metric, step).endswith("mean absolute error")


def test_curve_of_a_number_has_its_page_and_picture(tmp_path: Path) -> None:
    from tasks.scores.objective import objective
    from tasks.studies.learning_curve import curve_figure, curve_markdown, doubling

    metric = objective("regression").metrics[0]
    curve = points((0.99, 1.0, 1.01), (0.84, 0.85, 0.86), (0.73, 0.74, 0.75), (0.65, 0.66, 0.67))
    step, check = doubling(metric, curve, 0.95), doubling(metric, curve[:-1], 0.95)
    result = judge(tmp_path).model_copy(update={"task": "regression", "points": curve, "next": step, "check": check})
    page = curve_markdown(validated({}), result)
    assert "would bring mean absolute error from 0.660 to about 0.6" in page and ": -0.0" in page
    assert "all 800 brought -0.080, inside that interval" in page and "(lower is better)" in page
    (axis,) = curve_figure(result).axes
    assert axis.get_ylim()[0] < 0.6 and axis.get_ylim()[1] > 1.0


def points(*scores: Sequence[float]) -> tuple[CurvePoint, ...]:
    from tasks.base.outcomes import CurveRun
    from tasks.studies.seeds import spread

    return tuple(
        CurvePoint(
            rows=100 * 2**place,
            score=spread(same, 0.95, 0, 9),
            runs=tuple(CurveRun(seed=0, run_id="", verdict="", score=score, adapter_path="") for score in same),
        )
        for place, same in enumerate(scores)
    )


def test_parent_has_each_mean_under_the_name_of_single_runs(tmp_path: Path) -> None:
    from tasks.studies.learning_curve import point_metrics

    result = judge(tmp_path)
    metrics = point_metrics(result, result.points[-1])
    assert (metrics["tuned/accuracy"], metrics["seeds/accuracy_std"]) == pytest.approx((0.84, 0.01))
    assert metrics["tuned/accuracy_low"] < 0.84 < metrics["tuned/accuracy_high"] and metrics["seeds/count"] == 3


def test_picture_shows_runs_mean_band_and_both_expectations(tmp_path: Path) -> None:
    from tasks.studies.learning_curve import curve_figure, draw_curve

    result = judge(tmp_path)
    (axis,) = curve_figure(result).axes
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["100", "200", "400", "800", "1,600"]
    names = dict.fromkeys(axis.get_legend_handles_labels()[1])
    assert {*names} == {
        *("single runs", "mean", "95 % interval of the mean"),
        *("expected without the last point", "expected from all points"),
    }
    for name in "ab":
        draw_curve(tmp_path / f"{name}.png", result)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# which rows


def written(folder: Path, copies: int, labels: Any = None) -> Path:
    """A folder with train.csv of 12 rows for each copy, and small validation.csv and test.csv."""
    texts, numbers = sentences(copies + 2)
    frame = pd.DataFrame({"text": texts, "label": labels or [("bad", "good")[number] for number in numbers]})
    folder.mkdir(exist_ok=True)
    for name, part in (("train", frame[:-24]), ("validation", frame[-24:-12]), ("test", frame[-12:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


def drawn(config: RunConfig) -> dict[str, list[str]]:
    from tasks.data.prepare import find_data
    from tasks.data.splits import read_splits

    splits = read_splits(find_data(config), config.data).datasets
    return {role: list(split["text"]) for role, split in splits.items()}


@pytest.mark.parametrize("most", [None, 80])
def test_fewer_rows_of_a_seed_are_among_its_more_and_other_rows_stay(most: int | None, tmp_path: Path) -> None:
    from flows.learning_curve import part_config

    folder = written(tmp_path / "reviews", 8)
    config = validated({"data": {"name": str(folder), "max_train_rows": most}, "seed": 4})
    whole, all_rows = drawn(config), most or 96
    chains = {}
    for seed in (4, 5):
        chain = [
            drawn(part_config(config, seed, count, all_rows)) for count in (all_rows // 8, all_rows // 2, all_rows)
        ]
        assert [len(one["train"]) for one in chain] == [all_rows // 8, all_rows // 2, all_rows]
        assert {*chain[0]["train"]} < {*chain[1]["train"]} < {*chain[2]["train"]}
        assert all(one[role] == whole[role] for one in chain for role in ("validation", "test"))
        chains[seed] = chain
    assert chains[4][2]["train"] == whole["train"]
    assert {*chains[4][0]["train"]} != {*chains[5][0]["train"]}


def test_first_seed_with_all_rows_is_the_plain_run() -> None:
    from flows.learning_curve import part_config

    config = validated({"seed": 4})
    assert part_config(config, 4, 800, 800) == config
    assert part_config(config, 5, 800, 800) == config.model_copy(update={"seed": 5})
    limited = validated({"seed": 4, "data": {"max_train_rows": 800}})
    assert part_config(limited, 4, 800, 800) == limited
    assert part_config(limited, 5, 100, 800).data.draw_seed == 1
    registered = validated({"seed": 4, "tracking": {"registered_model": "reviews"}})
    assert part_config(registered, 4, 800, 800) == config


def test_numbers_of_rows_are_an_eighth_to_all_of_the_training_rows(tmp_path: Path) -> None:
    assert counts_of(written(tmp_path / "reviews", 8)) == (12, 24, 48, 96)
    assert counts_of(tmp_path / "reviews", max_train_rows=70) == (8, 17, 35, 70)


def counts_of(folder: Path, **fields: Any) -> tuple[int, ...]:
    from tasks.data.prepare import find_data
    from tasks.studies.learning_curve import rows_of_curve

    config = validated({"data": {"name": str(folder), **fields}})
    return rows_of_curve(config, find_data(config))


def test_too_few_rows_are_refused_by_the_command_before_anything_starts(
    tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.data.prepare import find_data

    monkeypatch.setattr("tasks.data.prepare.check_input", lambda config: (find_data(config), None))
    assert main(["learning-curve", "--data.name", str(written(tmp_path / "reviews", 5))]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    assert "needs at least 8 rows in an eighth of the training rows: 64 training rows; there are 60 rows" in errors
    assert not Path("mlruns").exists()


def test_an_eighth_must_hold_each_class(tmp_path: Path) -> None:
    folder = written(tmp_path / "reviews", 8, labels=[f"class {row % 12}" for row in range(120)])
    assert counts_of(folder) == (12, 24, 48, 96)
    with pytest.raises(
        InputError, match="12 rows in an eighth of the training rows, one of each of the 12 classes: 96"
    ):
        counts_of(folder, max_train_rows=95)


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--seeds", "1"], "seeds"), (["--seeds", "101"], "seeds"), (["--epochs", "1"], "training.epochs")],
)
def test_what_a_curve_cannot_be_told_is_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learning-curve", *options]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and says in errors


# the whole study


class Study(NamedTuple):
    config: RunConfig
    result: LearningCurveResult
    trained: list[tuple[int, int]]
    """Rows and seed of each training that there was."""
    folder: Path


@pytest.fixture(scope="module")
def study(foundation: Any, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[Study]:
    """Seeds 1 and 2 with half and all of the rows, interrupted in the third training, and run again in the same
    folder."""
    from flows.learning_curve import learning_curve
    from tasks.training import fit as training

    folder, before = tmp_path_factory.mktemp("study"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": str(written(folder / "reviews", 6)), "max_length": 32},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": ["majority"]},
            "seed": 1,
        }
    )
    given = {name: getattr(config, name) for name in RunConfig.model_fields} | {"seeds": 2}
    trained: list[tuple[int, int]] = []
    fit = training.fit_adapter

    def noted(one: RunConfig, *rest: Any) -> Any:
        trained.append((one.data.max_train_rows or 72, one.seed))
        if len(trained) == 3:
            raise RuntimeError("the power went")
        return fit(one, *rest)

    with pytest.MonkeyPatch.context() as patch, without_pictures():
        patch.setattr("tasks.studies.learning_curve.PARTS", (2, 1))  # a quarter and an eighth take as long
        patch.setattr(training, "fit_adapter", noted)
        with pytest.raises(RuntimeError, match=r"^72 rows, seed 1 failed: RuntimeError: the power went$"):
            learning_curve(**given)
        result = learning_curve(**given)
    yield Study(config, result, trained, folder)
    os.chdir(before)


def test_what_was_trained_before_an_interruption_is_not_trained_again(study: Study) -> None:
    assert study.trained == [(36, 1), (36, 2), (72, 1), (72, 1), (72, 2)]


def test_all_runs_lie_under_their_parent_with_rows_and_seed_in_their_names(study: Study) -> None:
    runs, result = runs_of(study.folder), study.result
    children = {run.run_id: (point.rows, run) for point in result.points for run in point.runs}
    assert set(runs) == {result.run_id, *children} and len(children) == 4
    for run_id, (rows, run) in children.items():
        child = runs[run_id]
        assert child.info.status == "FINISHED" and child.data.tags["mlflow.parentRunId"] == result.run_id
        assert child.info.run_name == study.config.name_of(f"{rows} rows, seed {run.seed}")
        assert child.data.metrics["tuned/accuracy"] == run.score and child.data.params["seed"] == str(run.seed)
    assert len({runs[run_id].data.tags["test_fingerprint"] for run_id in children}) == 1


def test_parent_has_the_curve_by_rows_the_page_and_the_picture(study: Study) -> None:
    api, result = client(study.folder), study.result
    parent = api.get_run(result.run_id)
    assert parent.info.status == "FINISHED" and parent.data.tags["verdict"] == result.verdict
    assert (parent.data.params["seeds"], parent.data.params["curve_rows"]) == ("2", "36,72")
    curve = api.get_metric_history(result.run_id, "tuned/accuracy")
    assert [(one.step, one.value) for one in curve] == [(one.rows, one.score.mean.value) for one in result.points]
    assert {item.path for item in api.list_artifacts(result.run_id, "comparison")} == {"comparison/learning_curve.md"}
    assert {item.path for item in api.list_artifacts(result.run_id, "plots")} == {"plots/training_rows.png"}


def test_prefect_shows_the_curve(study: Study) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    flow_run = client(study.folder).get_run(study.result.run_id).data.tags["prefect.flow_run_id"]
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run])))
        name = api.read_flow_run(flow_run).name
    assert name == study.config.name_of("learning curve, 2 seeds")
    assert "training rows" in {artifact.key: artifact.data for artifact in found}["learning-curve"]


def test_runs_of_a_curve_can_be_compared_and_the_curve_cannot(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (point.runs[0].run_id for point in (study.result.points[0], study.result.points[-1]))
    assert main(["compare", few, many]) == 0
    assert "data.max_train_rows" in capsys.readouterr().out
    assert main(["compare", few, study.result.run_id]) == USER_MUST_CHANGE
    assert "stands for the 4 runs of a learning curve; name one of those" in capsys.readouterr().err


def test_command_prints_the_curve_and_json_as_its_last_line(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import nullcontext

    import flows.learning_curve

    monkeypatch.setattr("flows.actions.prefect_starting", nullcontext)
    monkeypatch.setattr("flows.actions.get_ready_to_train", lambda: None)
    monkeypatch.setattr(flows.learning_curve, "learning_curve", lambda **given: study.result)
    options = ("--data.name", study.config.data.name, "--model.name", study.config.model.name, "--data.max_length=32")
    assert main(["learning-curve", *options, "--json"]) == 0
    output, errors = capsys.readouterr()
    assert LearningCurveResult.model_validate_json(output) == study.result and output.count("\n") == 1
    assert study.result.verdict.upper() in errors and "| training rows" in errors and study.result.run_id in errors
