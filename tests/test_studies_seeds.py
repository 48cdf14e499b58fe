"""Several seeds: means and spread that can be counted by hand, and runs that lie under their parent."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from flows.cli import USER_MUST_CHANGE, main
from tasks.base.outcomes import SeedsResult
from tasks.base.records import Comparison, Difference, Interval, Rung, RunResult, Seconds
from tasks.base.verdict import capital
from tasks.base.work import RunFolder
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import MOST_SEEDS
from tasks.settings.loading import validated
from tasks.studies.seeds import judge_seeds
from tasks.tracking.fetching import run_folder
from tests.conftest import without_pictures

ROWS = 100
SCORES = ("accuracy", "macro_f1", "log_loss")


def rung(name: str, accuracy: float, best: float = 0.0, verdict: Any = "no evidence") -> Rung:
    gain = Interval(value=best - accuracy, low=-1, high=1)
    gains = dict.fromkeys(SCORES, gain)
    difference = Difference(verdict=verdict, scores=gains, p_value=1, fixed=0, broken=0)
    values = dict(zip(SCORES, (accuracy, accuracy - 0.01, 1 - accuracy), strict=True))
    return Rung(
        name=name,
        scores={score: Interval(value=value, low=0, high=1) for score, value in values.items()},
        adapter_gain=None if name == "tuned" else difference,
    )


def write_run(
    folder: Path, right: int, verdict: Any = "improved", cautions: tuple[str, ...] = (), **references: float
) -> RunResult:
    """What a run leaves that has the first `right` of 100 rows right, 50 rows more or less than its baseline.

    `verdict` is that of the paired test against the last of its references.
    """
    accuracy = right / ROWS
    accuracies = {"tuned": accuracy, "baseline": 0.5, "majority": 0.5, **references}
    ladder = tuple(
        rung(name, value, accuracy, verdict if name == [*accuracies][-1] else "improved")
        for name, value in accuracies.items()
    )
    comparison = Comparison(
        folder=str(folder / "comparison"),
        rows=ROWS,
        confidence=0.95,
        detectable=None,
        ladder=ladder,
        leaked=0,
        score_without_leaked={},
        calibration={"temperature": 1},
        slices=(),
        cautions=cautions,
    )
    (folder / "comparison").mkdir(parents=True)
    comparison.write(folder / "comparison/comparison.json")
    labels = np.arange(ROWS) % 2
    predicted = np.where(np.arange(ROWS) < right, labels, 1 - labels)
    frame = {"row": np.arange(ROWS), "label": labels, "probabilities": list(np.eye(2)[predicted] * 0.8 + 0.1)}
    pd.DataFrame(frame).to_parquet(folder / "tuned.parquet", index=False)
    return RunResult(
        run_id=folder.name * 32,
        experiment="peft-flow",
        status="finished",
        verdict=comparison.verdict,
        baseline=ladder[1].values,
        tuned=ladder[0].values,
        delta={"accuracy": accuracy - 0.5, "low": 0, "high": 0, "p_value": 0, "fixed": 0, "broken": 0},
        references={},
        adapter_path=str(folder / "adapter"),
        adapter_sha256="0" * 64,
        model_uri="models:/m-0",
        version=None,
        data_fingerprint="f" * 64,
        seconds=Seconds(total=2, prepare=0, check=0, baseline=0, references=0, train=1, tuned=0, compare=0, record=0),
    )


def judge(folder: Path, rights: list[int], verdicts: list[str] | None = None) -> SeedsResult:
    from tasks.studies.seeds import judge_seeds

    given = verdicts or ["improved"] * len(rights)
    results = [
        write_run(folder / "abcdef"[i], right, verdict)
        for i, (right, verdict) in enumerate(zip(rights, given, strict=True))
    ]
    return judge_seeds("p" * 32, validated({"seed": 7, "evaluation": {"bootstrap_samples": 500}}), results)


def test_spread_is_what_can_be_counted_by_hand(tmp_path: Path) -> None:
    from scipy import stats

    result = judge(tmp_path, [80, 84, 88])
    accuracy = result.rung("tuned").primary
    values = np.array([0.80, 0.84, 0.88])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert accuracy.mean.model_dump() == pytest.approx({"value": 0.84, "low": low, "high": high})
    assert accuracy.deviation == pytest.approx(0.04)
    assert (accuracy.smallest, accuracy.largest) == (0.80, 0.88)
    assert result.gain.mean.value == result.lead.mean.value == pytest.approx(0.34)
    assert result.rung("tuned").scores["log_loss"].mean.value == pytest.approx(0.16)
    assert result.rung("majority").primary.deviation == 0
    assert result.noise == pytest.approx(stats.t.ppf(0.975, 2) * 0.04 * 2**0.5)
    assert [(run.seed, run.score) for run in result.runs] == [(7, 0.80), (8, 0.84), (9, 0.88)]
    assert (result.rows, result.seconds) == (ROWS, 6)


def test_ladder_has_the_rungs_of_every_run_best_first(tmp_path: Path) -> None:
    from tasks.studies.seeds import judge_seeds

    results = [
        write_run(tmp_path / "a", 80, tfidf=0.9, champion=0.95),  # a champion that only the first run knew
        write_run(tmp_path / "b", 82, tfidf=0.9),
    ]
    result = judge_seeds("p", validated({}), results)
    assert [rung.name for rung in result.ladder] == ["tfidf", "tuned", "baseline", "majority"]


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["improved", "improved"], "better than every reference"),
        (["worse", "worse"], "worse than majority class"),
        (["no evidence", "no evidence"], "not shown better than majority class"),
        (["improved", "no evidence"], "not shown better than majority class"),
        (["improved", "worse"], "not shown better than majority class"),
    ],
)
def test_verdict_needs_every_seed(verdicts: list[str], together: str, tmp_path: Path) -> None:
    assert judge(tmp_path, [80, 81], verdicts).verdict == together


def test_verdict_over_seeds_is_about_the_strongest_reference_with_its_difference(tmp_path: Path) -> None:
    from tasks.studies.seeds import description, headline, judge_seeds, runs_table, seed_metrics

    results = [
        write_run(tmp_path / "a", 80, "no evidence", probe=0.6, tfidf=0.79),
        write_run(tmp_path / "b", 82, "improved", probe=0.6, tfidf=0.79),
    ]
    result = judge_seeds("p", validated({}), results)
    assert [run.verdict for run in result.runs] == ["not shown better than TF-IDF", "better than every reference"]
    assert (result.verdict, result.against) == ("not shown better than TF-IDF", "tfidf")
    assert [run.lead for run in result.runs] == pytest.approx([0.01, 0.03])
    assert result.lead.mean.value == seed_metrics(result)["reference/strongest/gain"] == pytest.approx(0.02)
    assert "Against TF-IDF it is +0.020 (" in headline(result)
    assert (
        description(result).splitlines()[0].startswith("**Not shown better than TF-IDF** over 2 seeds: accuracy 0.810")
    )
    assert "minus TF-IDF" in runs_table(result) and "+0.030" in runs_table(result)


def test_intervals_over_two_seeds_are_possible(tmp_path: Path) -> None:
    from tasks.studies.seeds import noise_sentence, seeds_table

    result = judge(tmp_path, [50, 58])
    for rung in result.ladder:
        for spread, most in ((rung.primary, 1), (rung.scores["macro_f1"], 1), (rung.scores["log_loss"], np.inf)):
            assert 0 <= spread.mean.low <= spread.mean.value <= spread.mean.high <= most
    assert result.rung("tuned").primary.mean.high == 1 and "to 1.000" in seeds_table(result)
    assert result.gain.mean.low >= -1 and result.gain.mean.high <= 1
    assert result.noise == 1 and "±1.000" in noise_sentence(result)


def test_cautions_of_the_seeds_stand_beside_the_verdict(tmp_path: Path) -> None:
    from tasks.studies.seeds import description, judge_seeds, seeds_markdown

    results = [
        write_run(tmp_path / "a", 80, cautions=("few rows",)),
        write_run(tmp_path / "b", 80, cautions=("few rows", "odd")),
    ]
    result = judge_seeds("p", validated({"seed": 7}), results)
    assert result.cautions == ("few rows", "odd (seed 8)")
    told = "Caution: few rows; odd (seed 8)."
    assert told in seeds_markdown(validated({}), result).split("| classifier")[0]
    assert description(result).splitlines()[1].strip() == told


def test_pairs_that_a_paired_test_tells_apart_are_counted(tmp_path: Path) -> None:
    result = judge(tmp_path, [80, 81, 95])  # 14 and 15 rows that only the last has right
    assert (result.pairs, result.told_apart) == (3, 2)


def test_runs_on_other_rows_are_not_paired(tmp_path: Path) -> None:
    from tasks.studies.seeds import judge_seeds

    results = [write_run(tmp_path / name, 80) for name in "ab"]
    frame = pd.read_parquet(tmp_path / "b/tuned.parquet")
    frame.assign(row=frame["row"] + 1).to_parquet(tmp_path / "b/tuned.parquet")
    with pytest.raises(ValueError, match="different test rows"):
        judge_seeds("p", validated({}), results)


def test_page_says_verdict_spread_noise_and_runs(tmp_path: Path) -> None:
    from tasks.studies.seeds import description, seeds_markdown

    result = judge(tmp_path, [80, 84, 88], ["improved", "improved", "no evidence"])
    page = seeds_markdown(validated({}), result)
    assert page.startswith("# Not shown better than majority class: ") and "· 3 seeds\n" in page
    assert re.search(r"\| adapter +\| 0\.840 ± 0\.040 +\| 0\.741 to 0\.939 ", page)
    assert f"within ±{result.noise:.3f} of each other in accuracy at 95 %" in page
    assert "is seed noise" in page
    told = "Verdicts of the 3 runs: better than every reference 2, not shown better than majority class 1."
    assert told in page
    for run in result.runs:
        assert re.search(rf"\| {run.seed} +\| {run.verdict} +\| {run.score:.3f} .*{run.run_id}", page)
    lines = description(result).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("**Not shown better than majority class** over 3 seeds: accuracy 0.840 ± 0.040")


def test_seeds_that_agree_exactly_are_not_called_a_noise_of_zero(tmp_path: Path) -> None:
    from tasks.studies.seeds import noise_sentence

    said = noise_sentence(judge(tmp_path, [80, 80]))
    assert "All seeds have the same accuracy" in said and "±" not in said
    assert "Of 1 pair of seeds, 0 differ significantly" in said


def test_parent_has_the_means_under_the_names_of_single_runs(tmp_path: Path) -> None:
    from tasks.studies.seeds import seed_metrics

    metrics = seed_metrics(judge(tmp_path, [80, 84, 88]))
    expected = {
        "tuned/accuracy": 0.84,
        "tuned/log_loss": 0.16,
        "baseline/accuracy": 0.5,
        "reference/majority/accuracy": 0.5,
        "delta/accuracy": 0.34,
        "seeds/count": 3,
        "seeds/accuracy_std": 0.04,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["seeds/accuracy_low"] < 0.84 < metrics["seeds/accuracy_high"]
    assert metrics["seeds/noise"] > 0.04


def test_each_seed_is_the_plain_run_under_its_own_name() -> None:
    from flows.seeds import seed_configs

    config = validated({"seed": 5, "tracking": {"run_name": "n" * 250, "tags": {"team": "search"}}})
    configs = seed_configs(config, 3)
    assert [one.seed for one in configs] == [5, 6, 7]
    for one in configs:
        assert one.model_copy(update={"seed": 5, "tracking": config.tracking}) == config
        assert one.tracking.tags == ("team=search",)
        assert (one.tracking.run_name or "").endswith(f" · seed {one.seed}")
        assert validated(one.model_dump()) == one  # the name is not too long


def test_seeds_that_run_out_are_refused() -> None:
    from flows.seeds import seed_configs

    assert seed_configs(validated({"seed": 2**32 - 3}), 3)[-1].seed == 2**32 - 1
    with pytest.raises(InputError, match="seed: 3 seeds from 4294967294 on would go beyond 4294967295"):
        seed_configs(validated({"seed": 2**32 - 2}), 3)


def test_form_is_that_of_the_plain_flow_and_the_number_of_seeds() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.finetune import finetune
    from flows.seeds import finetune_seeds

    plain, schema = (parameter_schema(flow).model_dump() for flow in (finetune, finetune_seeds))
    assert {*schema["properties"]} == {*plain["properties"], "seeds"}
    assert schema["definitions"] == plain["definitions"]
    for name, field in plain["properties"].items():
        changes = {"description": "", "position": 0}
        assert {**field, **changes} == {**schema["properties"][name], **changes}
    seeds = schema["properties"]["seeds"]
    assert (seeds["minimum"], seeds["maximum"], seeds["default"]) == (2, MOST_SEEDS, 3)


@pytest.mark.parametrize("given", ["0", "-2", "101", "two", "2.5", "", "9" * 5000])
def test_number_of_seeds_that_cannot_be_is_refused_in_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--seeds", given]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    assert f"--seeds must be a whole number from 1 to {MOST_SEEDS}, not '{given[:50]}" in errors


class Family(NamedTuple):
    config: RunConfig
    result: SeedsResult
    folder: Path
    children: tuple[RunResult, ...]


@pytest.fixture(scope="module")
def family(
    foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None
) -> Iterator[Family]:
    """Two seeds, 1 and 2, run in an empty folder, which stays the current one."""
    from flows import seeds

    folder, before, children = tmp_path_factory.mktemp("family"), Path.cwd(), list[RunResult]()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": str(reviews), "max_length": 32},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8},
            "seed": 1,
        }
    )

    def run_one(*given: Any) -> RunResult:
        children.append(run_alone(*given))
        return children[-1]

    run_alone = seeds.run_one
    with without_pictures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "run_one", run_one)
        result = seeds.finetune_seeds(**{name: getattr(config, name) for name in RunConfig.model_fields}, seeds=2)
    yield Family(config, result, folder, tuple(children))
    os.chdir(before)


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


def runs_of(folder: Path) -> dict[str, Any]:
    """Every MLflow run of a folder's store by id."""
    api = client(folder)
    return {run.info.run_id: run for run in api.search_runs([api.get_experiment_by_name("peft-flow").experiment_id])}


def test_runs_lie_under_their_parent(family: Family) -> None:
    runs, result = runs_of(family.folder), family.result
    assert set(runs) == {result.run_id, *(run.run_id for run in result.runs)}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert "mlflow.parentRunId" not in runs[result.run_id].data.tags
    for seed, run in zip((1, 2), result.runs, strict=True):
        child = runs[run.run_id]
        assert child.data.tags["mlflow.parentRunId"] == result.run_id
        assert child.data.params["seed"] == str(seed)
        assert child.info.run_name == family.config.name_of(f"seed {seed}")
    assert runs[result.run_id].info.run_name == family.config.name_of("2 seeds")
    assert len({run.data.tags["prefect.flow_run_id"] for run in runs.values()}) == 3


def test_children_are_ordinary_runs(family: Family) -> None:
    for run in family.result.runs:
        child = client(family.folder).get_run(run.run_id)
        assert child.data.tags["verdict"] == run.verdict
        assert child.data.metrics["tuned/accuracy"] == run.score
        assert {"adapter", "comparison", "plots"} <= {
            item.path for item in client(family.folder).list_artifacts(run.run_id)
        }


def test_parent_holds_the_means_of_its_children(family: Family) -> None:
    runs, result = runs_of(family.folder), family.result
    parent, *children = (runs[run_id].data for run_id in (result.run_id, *(run.run_id for run in result.runs)))
    compared = 0
    for group in ("tuned", "baseline", "reference/majority", "reference/tfidf", "reference/probe"):
        for name in SCORES:
            mean = sum(child.metrics[f"{group}/{name}"] for child in children) / 2
            assert parent.metrics[f"{group}/{name}"] == pytest.approx(mean), (group, name)
            compared += 1
    assert compared == 15
    assert parent.metrics["delta/accuracy"] == pytest.approx(
        sum(child.metrics["delta/accuracy"] for child in children) / 2
    )
    one, other = (child.metrics["tuned/accuracy"] for child in children)
    assert parent.metrics["seeds/accuracy_std"] == pytest.approx(abs(one - other) / 2**0.5)
    assert parent.metrics["seeds/count"] == 2
    assert parent.params["seeds"] == "2"
    assert parent.tags["verdict"] == result.verdict
    assert parent.tags["mlflow.note.content"].startswith(f"**{capital(result.verdict)}** over 2 seeds")


@contextmanager
def on_another_machine(children: Sequence[RunResult]) -> Iterator[None]:
    """Within, the folders of these runs are not here."""
    folders = [Path(child.adapter_path).parent for child in children]
    for folder in folders:
        folder.rename(folder.with_suffix(".elsewhere"))
    try:
        yield
    finally:
        for folder in folders:
            folder.with_suffix(".elsewhere").rename(folder)


def test_seeds_that_other_machines_have_run_are_judged_by_what_mlflow_has(family: Family) -> None:
    with on_another_machine(family.children[1:]):
        again = judge_seeds(family.result.run_id, family.config, family.children)
        copy = run_folder(family.children[1], "adapter", "test_table")
    assert again == family.result
    own = RunFolder.around(family.children[1].adapter_path)
    files = {file.relative_to(own.adapter): file.read_bytes() for file in own.adapter.rglob("*") if file.is_file()}
    assert files and {name: (copy.adapter / name).read_bytes() for name in files} == files
    assert run_folder(family.children[1], "adapter").adapter == own.adapter, "it is here again"


def test_adapter_in_mlflow_that_is_not_the_one_trained_is_not_used(family: Family) -> None:
    child = family.children[0].model_copy(update={"adapter_sha256": "0" * 64})
    with on_another_machine([child]):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"holds another adapter \(\w{12}\) than the one that was trained"):
                run_folder(child, "adapter")
    assert not Path(f"mlruns/work/fetched-{child.run_id}").exists()


def test_parent_shows_the_comparison_and_its_configuration(family: Family) -> None:
    import yaml
    from mlflow.artifacts import download_artifacts

    uri = f"sqlite:///{family.folder}/mlruns/mlflow.db"
    folder = Path(download_artifacts(run_id=family.result.run_id, artifact_path="", tracking_uri=uri))
    page = (folder / "comparison/comparison.md").read_text()
    assert "± " in page and all(run.run_id in page for run in family.result.runs)
    recorded = validated(yaml.safe_load((folder / "config.yaml").read_text()))
    assert recorded.model_copy(update={"tracking": family.config.tracking}) == family.config


def test_prefect_shows_the_comparison_of_the_seeds(family: Family) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    flow_run = client(family.folder).get_run(family.result.run_id).data.tags["prefect.flow_run_id"]
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run])))
        name = api.read_flow_run(flow_run).name
    shown = {artifact.key: artifact.data for artifact in found}
    assert set(shown) == {"comparison", "mlflow-run"}
    assert "± " in shown["comparison"] and family.result.run_id in shown["comparison"]
    assert name == family.config.name_of("2 seeds")


def test_all_seeds_see_the_same_rows(family: Family) -> None:
    runs = [client(family.folder).get_run(run.run_id).data.tags for run in family.result.runs]
    for tag in ("data_fingerprint", "test_fingerprint"):
        assert runs[0][tag] == runs[1][tag]
    assert len(list((family.folder / "mlruns/work").glob("data-*"))) == 1


@pytest.mark.usefixtures("no_pictures")
def test_single_run_with_a_seed_gives_the_adapter_that_it_has_among_several(family: Family) -> None:
    from flows.finetune import finetune
    from tasks.base.records import file_sha256

    among = family.result.runs[1]
    before = file_sha256(Path(among.adapter_path) / "adapter_model.safetensors")
    assert file_sha256(Path(family.result.runs[0].adapter_path) / "adapter_model.safetensors") != before
    config = family.config.model_copy(update={"seed": among.seed})
    alone = finetune(**{name: getattr(config, name) for name in RunConfig.model_fields})
    assert alone.adapter_sha256 == before
    assert alone.adapter_path != among.adapter_path
    assert (alone.verdict, alone.tuned["accuracy"]) == (among.verdict, among.score)
    assert "mlflow.parentRunId" not in client(family.folder).get_run(alone.run_id).data.tags


def test_children_can_be_compared_and_the_parent_cannot(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    from tasks.base.outcomes import RunComparison

    first, second = family.result.runs
    capsys.readouterr()
    assert main(["compare", first.run_id, second.run_id, "--json"]) == 0
    result = RunComparison.model_validate_json(capsys.readouterr().out)
    assert (result.first.primary.value, result.second.primary.value) == (first.score, second.score)
    assert result.difference.primary.value == pytest.approx(second.score - first.score)
    assert result.parameters["seed"] == ("1", "2")
    assert (result.difference.verdict != "no evidence") == (family.result.told_apart == 1)

    assert main(["compare", first.run_id, family.result.run_id]) == USER_MUST_CHANGE
    assert "stands for 2 runs, one for each seed" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_failing_seed_fails_the_parent_and_says_which(
    small_config: Any, workplace: Path, prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.seeds import finetune_seeds
    from tasks.training import fit as training

    fit = training.fit_adapter

    def burn(config: RunConfig, *rest: Any) -> Any:
        if config.seed == 1:
            raise RuntimeError("the disk is on fire")
        return fit(config, *rest)

    monkeypatch.setattr(training, "fit_adapter", burn)
    config = small_config({"evaluation": {"references": []}, "training": {"epochs": 1}})
    with pytest.raises(RuntimeError, match=r"^seed 1 failed: RuntimeError: the disk is on fire$"):
        finetune_seeds(**{name: getattr(config, name) for name in RunConfig.model_fields}, seeds=2)
    states = {run.info.run_name.rpartition(" · ")[2]: run.info.status for run in runs_of(workplace).values()}
    assert states == {"2 seeds": "FAILED", "seed 0": "FINISHED", "seed 1": "FAILED"}


def test_what_the_user_must_change_is_still_reported_as_that(
    small_config: Any, workplace: Path, prefect_harness: None
) -> None:
    from flows.seeds import finetune_seeds

    config = small_config({"data": {"text_columns": "nothing"}})
    with pytest.raises(InputError, match="no column 'nothing'"):
        finetune_seeds(**{name: getattr(config, name) for name in RunConfig.model_fields}, seeds=2)
    assert {run.info.status for run in runs_of(workplace).values()} == {"FAILED"}
