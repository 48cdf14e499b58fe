"""What the adapter has to beat: each reference on the test rows, its file, its cache, and the registered champion."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import Evaluation, PreparedData, file_sha256
from tasks.base.trouble import is_network_trouble
from tasks.base.work import WORK
from tasks.data.prepare import prepare
from tasks.evaluation import references
from tasks.evaluation.champion import ChampionLeftOut, ask_champion
from tasks.evaluation.predictions import paired_predictions, read_predictions
from tasks.evaluation.recording import model_values
from tasks.evaluation.references import (
    ask_majority,
    cache_key,
    current_champion,
    evaluate_baseline,
    evaluate_references,
    measure,
    measurement_key,
    pooled_features,
    prediction_file,
    text_features,
    words_recur,
)
from tasks.models import foundation as models
from tasks.models import serving
from tasks.scores.linear import logistic
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.loading import validated
from tasks.tracking import address
from tasks.tracking import run as tracking
from tasks.tracking.adapters import download_adapter
from tasks.tracking.versions import Champion, find_champion
from tests.conftest import Trained, sentences, tracked

FAMILIES = ("gpt2", "llama", "bert", "roberta", "distilbert")
CHEAP: tuple[Any, ...] = ("majority", "tfidf", "probe", "zero_shot")

SINGLE = objective("single_label")


def other(config: RunConfig, **changes: Any) -> RunConfig:
    values = config.model_dump()
    for name, change in changes.items():
        values[name] = values[name] | change if isinstance(change, dict) else change
    return validated(values)


def write_splits(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> str:
    """A data set whose validation rows are its test rows."""
    folder.mkdir()
    for name, frame in (("train", train), ("validation", test), ("test", test)):
        frame.to_csv(folder / f"{name}.csv", index=False)
    return str(folder)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `all_measured` has written; leave it as it is."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def all_measured(trained: Trained, place: Path) -> dict[str, Evaluation]:
    """What each reference was measured at, by name."""
    return {name: measure(name, trained.config, trained.data, place) for name in ("baseline", *CHEAP)}


@pytest.mark.parametrize("name", ["baseline", *CHEAP])
def test_every_reference_has_a_prediction_file_of_the_test_rows(
    name: Any, trained: Trained, all_measured: dict[str, Evaluation], place: Path
) -> None:
    result = all_measured[name]
    file = Path(result.predictions)
    assert file == prediction_file(name, trained.config, trained.data, place)
    assert file.name == f"{name}.parquet" and file.parent.parent == place
    assert [path.name for path in file.parent.iterdir()] == [file.name], "whole, and nothing else"
    rows, labels, table = read_predictions(str(file))
    assert rows.tolist() == list(range(12)) and table.shape == (12, 2) and table.sum(1) == pytest.approx(1)
    assert result.sha256 == file_sha256(file)
    assert result.scores["accuracy"] == (table.argmax(1) == labels).mean()


@pytest.mark.parametrize("name", ["baseline", *CHEAP])
def test_every_reference_is_the_same_every_time(
    name: Any, trained: Trained, all_measured: dict[str, Evaluation], tmp_path: Path
) -> None:
    again = measure(name, trained.config, trained.data, tmp_path)
    assert all_measured[name].sha256 == again.sha256 and all_measured[name].scores == again.scores


def test_references_and_adapter_are_about_the_same_rows(
    all_measured: dict[str, Evaluation], measured: Evaluation
) -> None:
    files = {name: all_measured[name].predictions for name in CHEAP}
    assert len(paired_predictions({"tuned": measured.predictions, **files}).tables) == 1 + len(CHEAP)


def test_the_reviews_can_be_learned_from_words_and_from_the_frozen_model(all_measured: dict[str, Evaluation]) -> None:
    assert all_measured["majority"].scores["accuracy"] == 0.5
    assert all_measured["tfidf"].scores["accuracy"] >= 0.9
    assert all_measured["probe"].scores["accuracy"] >= 0.75


# --- majority --------------------------------------------------------------------------------------------------------


def test_the_majority_reference_says_the_training_shares(trained: Trained, tmp_path: Path) -> None:
    from datasets import load_from_disk

    splits = load_from_disk(trained.data.folder)
    labels = np.asarray(splits["train"]["labels"])
    rows = [*np.flatnonzero(labels == 0)[:24], *np.flatnonzero(labels == 1)[:8]]
    splits["train"] = splits["train"].select(rows)
    splits.save_to_disk(str(tmp_path / "uneven"))
    data = trained.data.model_copy(update={"folder": str(tmp_path / "uneven")})
    assert (ask_majority(data) == [0.75, 0.25]).all()
    scores = measure("majority", trained.config, data, tmp_path).scores
    assert scores["accuracy"] == 0.5 and scores["macro_f1"] == pytest.approx((2 / 3) / 2)
    assert scores["log_loss"] == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_read_singly_and_in_pairs() -> None:
    train = ["not good", "not bad", "good", "bad", "not good", "not bad"]
    known, asked = text_features([train, ["not good", "a bad", "unknown"]], 100)
    assert known.shape == (6, 5), "not, good, bad, not good, not bad"
    assert [row.nnz for row in asked] == [3, 1, 0]


def test_the_number_of_features_is_limited() -> None:
    known, _ = text_features([sentences(4)[0], ["a warm film"]], 10)
    assert known.shape[1] == 10


def chinese(rows: int, seed: int) -> tuple[list[str], list[int]]:
    """Sentences without spaces, two words of the label among eight others, in any order."""
    generator = random.Random(seed)
    neutral = ["电影", "导演", "演员", "故事", "昨天", "我们", "城市", "音乐", "画面", "时间", "朋友", "周末"]
    telling = (["无聊", "糟糕", "失望", "难看"], ["精彩", "感动", "喜欢", "好看"])
    texts = []
    for row in range(rows):
        words = generator.sample(neutral, 8) + generator.sample(telling[row % 2], 2)
        generator.shuffle(words)
        texts.append("".join(words[:5]) + "，" + "".join(words[5:]) + "。")
    return texts, [row % 2 for row in range(rows)]


def test_a_script_without_spaces_is_read_by_its_characters(small_config: Any, tmp_path: Path) -> None:
    texts, labels = chinese(160, 0)
    assert not words_recur(texts) and words_recur(sentences(4)[0])
    frame = pd.DataFrame({"text": texts, "label": labels})
    name = write_splits(tmp_path / "chinese", frame[:100], frame[100:])
    config = small_config({"data": {"name": name, "max_length": 32}})
    assert measure("tfidf", config, prepare(config, tmp_path), tmp_path).scores["accuracy"] >= 0.95


def test_texts_without_any_word_are_read_by_their_signs() -> None:
    known, asked = text_features([[":-)", ":-(", ":-))"], [":-)"]], 100)
    assert known.shape[1] > 3 and asked.nnz > 3


def test_each_text_column_has_words_of_its_own(small_config: Any, tmp_path: Path) -> None:
    generator = random.Random(0)
    rows = []
    for row in range(120):
        first, second = ("yes", "no") if row % 2 else ("no", "yes")
        filler = generator.sample(["so", "then", "well", "again", "perhaps"], 4)
        texts = {"premise": f"{filler[0]} {first} {filler[1]}", "hypothesis": f"{filler[2]} {second} {filler[3]}"}
        rows.append({**texts, "label": row % 2})
    frame = pd.DataFrame(rows)
    name = write_splits(tmp_path / "pairs", frame[:80], frame[80:])
    config = small_config({"data": {"name": name, "max_length": 32, "text_columns": ["premise", "hypothesis"]}})
    result = measure("tfidf", config, prepare(config, tmp_path), tmp_path)
    assert result.scores["accuracy"] == 1, "the same words are in every row; only their column tells"


# --- logistic regression ---------------------------------------------------------------------------------------------


def test_a_class_that_training_lacks_has_a_column_of_its_own(trained: Trained, tmp_path: Path) -> None:
    data = trained.data.model_copy(
        update={"label_names": ("bad", "good", "odd"), "class_counts": {"train": (24, 24, 0), "test": (6, 6, 0)}}
    )
    for name in ("majority", "tfidf", "probe"):
        result = measure(name, trained.config, data, tmp_path / name)
        _, _, table = read_predictions(result.predictions)
        assert table.shape == (12, 3) and (table[:, 2] == 0).all() and table.sum(1) == pytest.approx(1)


def test_columns_stay_in_the_order_of_the_classes() -> None:
    known = np.array([[-1.0], [-1.1], [-0.9], [1.0], [1.1], [0.9]])
    table = logistic(known, np.array([2, 2, 2, 0, 0, 0]), [np.array([[-1.0], [1.0]])], 3, (1.0,), 0)[0]
    assert table.argmax(1).tolist() == [2, 0] and (table[:, 1] == 0).all()


def test_the_penalty_is_chosen_by_cross_validated_log_loss() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    generator = np.random.default_rng(0)
    known = generator.normal(size=(60, 30))
    labels = (known[:, 0] + generator.normal(size=60) > 0).astype(int)
    losses = {}
    for grid in (0.001, 0.05, 100.0):
        losses[grid] = np.mean(
            [
                log_loss(labels[test], logistic(known[train], labels[train], [known[test]], 2, (grid,), 0)[0])
                for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(known, labels)
            ]
        )
    best = min(losses, key=losses.__getitem__)
    expected = LogisticRegression(C=best, max_iter=1000).fit(known, labels).predict_proba(known)
    assert best == 0.05
    assert logistic(known, labels, [known], 2, tuple(losses), 0)[0] == pytest.approx(expected)


def test_a_class_with_too_few_rows_to_cross_validate_is_learned_all_the_same() -> None:
    from sklearn.linear_model import LogisticRegression

    known, labels = np.array([[-1.0], [-1.2], [1.0], [0.9], [1.1]]), np.array([0, 0, 1, 1, 1])
    expected = LogisticRegression(C=1).fit(known, labels).predict_proba(known)
    assert logistic(known, labels, [known], 2, (125.0,), 0)[0] == pytest.approx(expected)


# --- the probe -------------------------------------------------------------------------------------------------------


def one_split(config: RunConfig, data: PreparedData, split: str = "test") -> Any:
    from datasets import load_from_disk

    (features,) = pooled_features(config, data, {split: load_from_disk(data.folder)[split]})
    return features


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_mean_of_the_last_hidden_state_over_real_tokens(
    family: str, small_config: Any, tmp_path: Path
) -> None:
    import torch
    from datasets import load_from_disk
    from transformers import AutoModel

    config = small_config({"evaluation": {"batch_size": 12}}, family=family)
    data = prepare(config, tmp_path)
    features = one_split(config, data)
    assert features.shape == (12, 32) and features.dtype == np.float64
    plain = AutoModel.from_pretrained(config.model.name).eval()
    tokenizer = models.load_tokenizer(data.model, config.model)
    texts = load_from_disk(data.folder)["test"]["text"][:]
    assert len({len(ids) for ids in tokenizer(texts)["input_ids"]}) > 1, "the batch holds padding"
    for row, text in enumerate(texts):
        with torch.inference_mode():
            states = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert features[row] == pytest.approx(states.mean(0).numpy(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_learns_from_every_family(family: str, small_config: Any, tmp_path: Path) -> None:
    config = small_config(family=family)
    result = measure("probe", config, prepare(config, tmp_path), tmp_path)
    assert result.scores["accuracy"] > 0.5


def test_an_encoder_decoder_is_probed_by_its_encoder(tmp_path: Path, small_config: Any) -> None:
    import torch
    import transformers
    from datasets import load_from_disk

    folder = shutil.copytree(small_config(family="bert").model.name, tmp_path / "t5")
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        file.unlink()
    torch.manual_seed(0)
    shape = transformers.T5Config(
        vocab_size=200,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=1,
        eos_token_id=3,
    )
    transformers.T5Model(shape).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | inputs))
    config = small_config({"model": {"name": str(folder)}})
    data = prepare(config, tmp_path)
    encoder = transformers.T5EncoderModel.from_pretrained(folder).eval()
    tokenizer = models.load_tokenizer(data.model, config.model)
    text = load_from_disk(data.folder)["test"]["text"][0]
    with torch.inference_mode():
        states = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    assert one_split(config, data)[0] == pytest.approx(states.mean(0).numpy(), abs=1e-5)


def test_a_bfloat16_model_gives_about_the_same_features(small_config: Any, tmp_path: Path) -> None:
    config = small_config(family="bert")
    data = prepare(config, tmp_path)
    full, half = one_split(config, data), one_split(other(config, model={"dtype": "bfloat16"}), data)
    assert half.dtype == np.float64 and 0 < np.abs(full - half).max() < 0.1


def test_only_so_many_training_rows_are_read(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    plain = references.pooled_features

    def counting(config: RunConfig, data: PreparedData, splits: dict[str, Any]) -> Any:
        seen.update({name: len(split) for name, split in splits.items()})
        seen["classes"] = len(set(splits["train"]["labels"]))
        return plain(config, data, splits)

    monkeypatch.setattr(references, "pooled_features", counting)
    monkeypatch.setattr(references, "PROBE_TRAINING_ROWS", 20)
    config = small_config()
    measure("probe", config, prepare(config, tmp_path), tmp_path)
    assert seen == {"train": 20, "test": 12, "classes": 2}


def test_the_scale_of_a_feature_does_not_matter(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is in a feature a thousandth as large as the noise beside it, and far from 0."""

    def features(config: RunConfig, data: PreparedData, splits: dict[str, Any]) -> Any:
        generator = np.random.default_rng(0)
        labels = [np.asarray(split["labels"][:]) for split in splits.values()]
        return [np.stack([5 + label / 1000, generator.normal(size=len(label))], axis=1) for label in labels]

    monkeypatch.setattr(references, "pooled_features", features)
    config = small_config()
    assert measure("probe", config, prepare(config, tmp_path), tmp_path).scores["accuracy"] == 1


def test_a_row_without_finite_features_is_named(small_config: Any, tmp_path: Path) -> None:
    """One token's embedding is no number: the first row that holds it is row 11 of the training rows."""
    from datasets import load_from_disk
    from safetensors.torch import load_file, save_file

    config = small_config(family="bert")
    data = prepare(config, tmp_path)
    rows = load_from_disk(data.folder)["train"]["input_ids"][:]
    token = next(token for token in rows[11] if all(token not in row for row in rows[:11]))
    folder = shutil.copytree(config.model.name, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    broken = other(config, model={"name": str(folder)})
    broken_data = data.model_copy(update={"model": data.model.model_copy(update={"name": str(folder)})})
    with pytest.raises(FloatingPointError, match="the foundation model has no finite features for train row 11"):
        measure("probe", broken, broken_data, tmp_path)
    assert not list(tmp_path.glob("probe-*"))


# --- what is shared, what is measured again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"seed": 1}, {*CHEAP}),
        ({"training": {"learning_rate": 0.5, "epochs": 9}, "adapter": {"r": 2}}, {*CHEAP, "baseline"}),
        ({"evaluation": {"bootstrap_samples": 777}, "offline": True}, {*CHEAP, "baseline"}),
        ({"data": {"max_length": 16}}, {"majority", "tfidf"}),
        ({"evaluation": {"batch_size": 9}}, {"majority", "tfidf"}),
        ({"model": {"dtype": "bfloat16"}}, {"majority", "tfidf"}),
        ({"data": {"max_train_rows": 40}}, set()),
        ({"data": {"split_seed": 1}}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_runs_share_what_does_not_depend_on_their_difference(
    changes: dict[str, Any], shared: set[str], small_config: Any, tmp_path: Path
) -> None:
    config = small_config()
    changed = other(config, **changes)
    data, changed_data = prepare(config, tmp_path), prepare(changed, tmp_path)
    names = (*CHEAP, "baseline")
    assert shared == {
        name for name in names if measurement_key(name, config, data) == measurement_key(name, changed, changed_data)
    }


@pytest.mark.parametrize("name", ["baseline", *CHEAP, "champion"])
def test_what_other_packages_or_code_gave_is_measured_again(
    name: Any, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measurement_key(name, trained.config, trained.data)
    monkeypatch.setattr("tasks.evaluation.references.environment_key", lambda: "after an upgrade")
    assert measurement_key(name, trained.config, trained.data) != before


def test_models_share_the_references_that_read_no_model(small_config: Any, tmp_path: Path) -> None:
    gpt2, bert = small_config(), small_config(family="bert")
    names = (*CHEAP, "baseline")
    files = [{prediction_file(name, c, prepare(c, tmp_path), tmp_path) for name in names} for c in (gpt2, bert)]
    assert {file.name for file in files[0] & files[1]} == {"majority.parquet", "tfidf.parquet"}


def test_the_same_texts_from_another_source_are_measured_anew(trained: Trained) -> None:
    """Their places in the source differ, and predictions are paired by place."""
    source = trained.data.source.model_copy(update={"revision": "sha256:0"})
    moved = trained.data.model_copy(update={"source": source})
    for name in (*CHEAP, "baseline"):
        key = measurement_key(name, trained.config, trained.data)
        assert key != measurement_key(name, trained.config, moved)


def test_what_is_measured_again_when_the_content_changes(trained: Trained) -> None:
    config, data = trained.config, trained.data
    newer = data.model_copy(update={"model": data.model.model_copy(update={"revision": "new"})})
    changed = data.model_copy(update={"fingerprint": "0" * 64})
    for name in ("baseline", "probe", "zero_shot"):
        assert measurement_key(name, config, data) != measurement_key(name, config, newer)
    for name in (*CHEAP, "baseline"):
        assert measurement_key(name, config, data) != measurement_key(name, config, changed)
    champions = (
        Champion(uri="models:/reviews/1", version="1", source=f"models:/m-{number}", run_id=None) for number in (1, 2)
    )
    first, again = (measurement_key("champion", config, data, champion) for champion in champions)
    assert first != again, "the registry was emptied and counts from 1 again"


def test_a_cached_result_is_of_one_place_and_one_classifier(trained: Trained) -> None:
    keys = {
        cache_key(None, {"name": name, "config": trained.config, "data": trained.data, "work": work, "champion": None})
        for work in ("a", "b")
        for name in ("baseline", *CHEAP)
    }
    assert len(keys) == 2 * len(("baseline", *CHEAP))


def test_the_task_hands_on_plain_values(trained: Trained, tmp_path: Path) -> None:
    plain = references.evaluate.fn("tfidf", trained.config, trained.data, str(tmp_path), None)
    assert Evaluation.model_validate(json.loads(json.dumps(plain))).scores["accuracy"] <= 1


def in_flow(call: Callable[..., Any], *arguments: Any) -> Any:
    from prefect import flow

    return flow(name="references", validate_parameters=False)(lambda: call(*arguments))()


def stamps(results: dict[str, Evaluation]) -> dict[str, int]:
    return {name: Path(result.predictions).stat().st_mtime_ns for name, result in results.items()}


def test_results_are_cached_until_their_file_is_gone(
    trained: Trained, tmp_path: Path, prefect_harness: None, workplace: Path
) -> None:
    config, data, work = trained.config, trained.data, str(tmp_path / "work")

    def all_of_them() -> dict[str, Evaluation]:
        return {"baseline": evaluate_baseline(config, data, work), **evaluate_references(config, data, work)}

    first = in_flow(all_of_them)
    assert list(first) == ["baseline", *CHEAP], "nothing is registered, so there is no champion"
    written = stamps(first)
    again = in_flow(all_of_them)
    assert again == first and stamps(again) == written
    for name in ("baseline", "tfidf"):
        Path(first[name].predictions).unlink()
    last = in_flow(all_of_them)
    renewed = {name for name, stamp in stamps(last).items() if stamp != written[name]}
    assert renewed == {"baseline", "tfidf"}
    assert {name: result.sha256 for name, result in last.items()} == {n: r.sha256 for n, r in first.items()}


def test_only_the_references_asked_for_are_measured(
    trained: Trained, tmp_path: Path, prefect_harness: None, workplace: Path
) -> None:
    config = other(trained.config, evaluation={"references": ["tfidf", "majority"]})
    assert list(in_flow(evaluate_references, config, trained.data, str(tmp_path))) == ["tfidf", "majority"]
    config = other(trained.config, evaluation={"references": []})
    assert in_flow(evaluate_references, config, trained.data, str(tmp_path)) == {}


# --- the champion ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder whose store has the trained adapter as version 1 of `reviews`, and a configuration for it."""
    store = tmp_path_factory.mktemp("registry")
    config = other(trained.config, tracking={"registered_model": "reviews"})
    with pytest.MonkeyPatch.context() as place:
        place.chdir(store)
        place.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracked(config.model_dump()):
            table = pd.DataFrame({"text": ["a warm film", "a cold film"]})
            work = str((WORK / "a").resolve())
            tracking.log(work, "model", model_values(work, config, trained.data, trained.adapter, table))
            tracking.send_all(work)
    return store, config


@pytest.fixture
def registry(registered: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registry's client and a configuration that registers there; no champion before and after."""
    from mlflow import MlflowClient

    store, config = registered
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    api = MlflowClient(address.tracking_uri())
    yield api, config
    api.delete_registered_model_alias("reviews", "champion")


@pytest.mark.usefixtures("registry")
def test_there_is_no_champion_before_one_is_named() -> None:
    assert find_champion("reviews") is None, "version 1 has no alias"
    assert find_champion("unknown") is None
    assert current_champion(None) is None


def test_the_champion_is_the_version_with_the_alias(registry: Any, trained: Trained, tmp_path: Path) -> None:
    api, _ = registry
    api.set_registered_model_alias("reviews", "champion", "1")
    champion = find_champion("reviews")
    assert champion and champion.uri == "models:/reviews/1"
    assert (champion.version, champion.run_id) == ("1", api.get_model_version("reviews", "1").run_id)
    adapter = download_adapter(champion.uri, tmp_path)
    assert adapter.is_relative_to(tmp_path)
    for file in ("adapter_model.safetensors", serving.SETTINGS):
        assert (adapter / file).read_bytes() == (Path(trained.adapter.folder) / file).read_bytes()


def test_the_champion_says_on_the_test_rows_what_it_said_when_it_was_measured(
    registry: Any, trained: Trained, measured: Evaluation, tmp_path: Path, prefect_harness: None
) -> None:
    api, config = registry
    assert "champion" not in in_flow(evaluate_references, config, trained.data, str(tmp_path))
    api.set_registered_model_alias("reviews", "champion", "1")
    results = in_flow(evaluate_references, config, trained.data, str(tmp_path))
    assert list(results) == [*CHEAP, "champion"]
    both = paired_predictions({"tuned": measured.predictions, "champion": results["champion"].predictions})
    assert both.tables["champion"] == pytest.approx(both.tables["tuned"], abs=1e-5)
    assert results["champion"].scores["accuracy"] == measured.scores["accuracy"]


@pytest.mark.parametrize("failures", [2, 10**9])
def test_mlflow_that_does_not_answer_is_asked_for_the_champion_again_and_then_done_without(
    failures: int,
    registry: Any,
    champion: Champion,
    trained: Trained,
    tmp_path: Path,
    prefect_harness: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = 0

    def find(name: str) -> Champion | None:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise ConnectionRefusedError(111, "Connection refused")
        return find_champion(name)

    monkeypatch.setattr(references, "find_champion", find)
    monkeypatch.setattr(references, "CHAMPION_SECONDS", 60 if failures == 2 else 2)
    results = in_flow(evaluate_references, registry[1], trained.data, str(tmp_path))
    assert list(results) == ([*CHEAP, "champion"] if failures == 2 else [*CHEAP])
    left_out = "The champion is not compared because it cannot be reached now (Connection refused); the run goes on"
    assert (left_out in caplog.text) == (failures != 2) and asked > 1


def with_columns(config: RunConfig, folder: Path, **renamed: Any) -> tuple[RunConfig, PreparedData]:
    """The reviews with other columns or labels, and a configuration that reads them."""
    frames = [pd.read_csv(Path(config.data.name) / f"{name}.csv") for name in ("train", "test")]
    for frame in frames:
        for column, change in renamed.items():
            frame[column] = change(frame)
    changed = other(config, data={"name": write_splits(folder / "changed", *frames)})
    return changed, prepare(changed, folder)


@pytest.fixture
def champion(registry: Any) -> Champion:
    api, _ = registry
    api.set_registered_model_alias("reviews", "champion", "1")
    found = find_champion("reviews")
    assert found
    return found


def test_a_champion_finds_its_text_under_another_name(
    registry: Any, champion: Champion, trained: Trained, tmp_path: Path
) -> None:
    _, config = registry
    changed, _ = with_columns(config, tmp_path, review=lambda frame: frame["text"])
    renamed = other(changed, data={"text_columns": ["review"]})
    here = ask_champion(renamed, prepare(renamed, tmp_path), champion)
    assert here == pytest.approx(ask_champion(config, trained.data, champion))


def test_a_champion_that_orders_its_classes_otherwise_answers_in_this_runs_order(
    registry: Any, champion: Champion, trained: Trained
) -> None:
    _, config = registry
    turned = trained.data.model_copy(update={"label_names": ("good", "bad")})
    here, there = (ask_champion(config, data, champion) for data in (turned, trained.data))
    assert (here == there[:, ::-1]).all() and not np.allclose(here, there)


def test_a_champion_of_other_classes_is_left_out_with_a_warning_and_the_run_goes_on(
    registry: Any, champion: Champion, tmp_path: Path, prefect_harness: None, caplog: pytest.LogCaptureFixture
) -> None:
    _, config = registry
    changed, data = with_columns(config, tmp_path, label=lambda frame: frame["label"].map({"bad": "no", "good": "yes"}))
    changed = other(changed, evaluation={"references": ["champion", "majority"]})
    for _ in range(2):
        caplog.clear()
        assert list(in_flow(evaluate_references, changed, data, str(tmp_path))) == ["majority"]
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert any("models:/reviews/1 knows bad, good, not no, yes" in message for message in said), said


def test_a_champion_is_asked_among_the_classes_that_it_shares() -> None:
    table = np.array([[0.25, 0.25, 0.5], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]], np.float32)
    assert SINGLE.among(table, ["a", "b", "c"], ["c", "a", "b"]).tolist() == table[:, [2, 0, 1]].tolist()
    assert SINGLE.among(table, ["a", "b", "c"], ["a", "b", "c", "d"])[:, 3].tolist() == [0, 0, 0]
    fewer = SINGLE.among(table, ["a", "b", "c"], ["b", "new", "a"])
    assert fewer.dtype == np.float32 and fewer.sum(1) == pytest.approx(1)
    assert fewer == pytest.approx(np.array([[0.5, 0, 0.5], [0.1, 0, 0.9], [0.5, 0, 0.5]]))


def test_a_champion_of_some_of_the_classes_is_asked(registry: Any, champion: Champion, trained: Trained) -> None:
    _, config = registry
    grown = trained.data.model_copy(update={"label_names": ("bad", "good", "odd")})
    answers = ask_champion(config, grown, champion)
    assert (answers[:, 2] == 0).all() and (answers[:, :2] == ask_champion(config, trained.data, champion)).all()
    one = trained.data.model_copy(update={"label_names": ("good", "odd")})
    with pytest.raises(ChampionLeftOut, match="knows bad, good, not good, odd"):
        ask_champion(config, one, champion)


def test_a_champion_of_other_columns_is_left_out(registry: Any, champion: Champion, trained: Trained) -> None:
    _, config = registry
    pairs = trained.data.model_copy(update={"text_columns": ("premise", "hypothesis")})
    with pytest.raises(ChampionLeftOut, match="models:/reviews/1 reads the columns text, not premise, hypothesis"):
        ask_champion(config, pairs, champion)


def test_a_registered_model_that_is_none_of_ours_is_left_out(registry: Any, trained: Trained) -> None:
    import mlflow

    api, config = registry
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="other",
            python_model=lambda model_input: model_input,
            registered_model_name="stranger",
            pip_requirements=[],
        )
    api.set_registered_model_alias("stranger", "champion", "1")
    champion = find_champion("stranger")
    assert champion
    with pytest.raises(ChampionLeftOut, match="models:/stranger/1 cannot be read: models:/stranger/1 holds no adapter"):
        ask_champion(config, trained.data, champion)


def changed_settings(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Every adapter read from here on says this about its foundation model."""
    plain = serving.read_settings

    def changed(folder: Path) -> dict[str, Any]:
        settings = plain(folder)
        return settings | {"base_model": settings["base_model"] | changes}

    monkeypatch.setattr(serving, "read_settings", changed)


def test_a_champion_whose_foundation_model_is_gone_is_left_out(
    registry: Any, champion: Champion, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = registry
    changed_settings(monkeypatch, name=str(tmp_path / "deleted"))
    with pytest.raises(ChampionLeftOut, match=r"models:/reviews/1 cannot be read: .*deleted"):
        ask_champion(config, trained.data, champion)


def test_champion_whose_foundation_model_has_other_weights_now_is_left_out(
    registry: Any, champion: Champion, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = registry
    changed_settings(monkeypatch, weights="0" * 64)
    with pytest.raises(ChampionLeftOut, match=r"models:/reviews/1: the foundation model at .* has other weights"):
        ask_champion(config, trained.data, champion)


def test_a_champion_with_code_of_its_own_runs_only_where_that_is_trusted(
    registry: Any, champion: Champion, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = registry
    changed_settings(monkeypatch, trust_remote_code=True)
    with pytest.raises(ChampionLeftOut, match=r"its own Python code and model\.trust_remote_code is not set"):
        ask_champion(config, trained.data, champion)
    trusting = other(config, model={"trust_remote_code": True})
    assert ask_champion(trusting, trained.data, champion).shape == (12, 2)


@pytest.mark.parametrize(("offline", "asked"), [(True, [True]), (False, [True, False])])
def test_an_offline_run_asks_no_hub_for_the_champions_foundation_model(
    offline: bool,
    asked: list[bool],
    registry: Any,
    champion: Champion,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local_files_only = []

    def absent(*arguments: Any, **options: Any) -> Any:
        local_files_only.append(options["local_files_only"])
        raise OSError("org/absent is not there")

    _, config = registry
    monkeypatch.setattr(serving, "load_classifier", absent)
    with pytest.raises(ChampionLeftOut, match="models:/reviews/1 cannot be read: org/absent is not there"):
        ask_champion(other(config, offline=offline), trained.data, champion)
    assert local_files_only == asked


def test_a_champion_that_the_network_keeps_away_is_asked_for_again(
    registry: Any, champion: Champion, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out at the first hiccup, it would be missing from a comparison for no reason."""

    def cut(*arguments: Any, **options: Any) -> Any:
        raise OSError("cannot load") from ConnectionError("refused")

    _, config = registry
    monkeypatch.setattr(serving, "load_classifier", cut)
    with pytest.raises(OSError, match="cannot load") as error:
        ask_champion(config, trained.data, champion)
    assert is_network_trouble(error.value)
    with pytest.raises(ChampionLeftOut):
        ask_champion(other(config, offline=True), trained.data, champion)


# --- on the GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_features_from_the_gpu_are_those_of_the_cpu(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(family="bert")
    data = prepare(config, tmp_path)
    there = one_split(config, data)
    monkeypatch.setattr(serving, "on_best_device", lambda model: model)
    assert there == pytest.approx(one_split(config, data), abs=1e-4)
