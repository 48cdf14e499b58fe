"""Measure what the adapter has to beat on the same test rows: the untouched foundation model, and references.

References are classifiers that cost little: the majority class, TF-IDF with logistic regression, a linear probe on
the frozen foundation model, its language head asked in words, and the champion, which is the adapter in use so far.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task
from prefect.logging import get_run_logger
from prefect.serializers import PickleSerializer

from tasks.base.machine import environment_key
from tasks.base.progress import tell, warn
from tasks.base.records import Evaluation, PreparedData, Source, digest
from tasks.data.splits import stratified_rows
from tasks.evaluation.champion import ChampionLeftOut, ask_champion
from tasks.evaluation.predictions import write_evaluation
from tasks.evaluation.zero_shot import ZeroShotLeftOut, ask_zero_shot
from tasks.models import foundation as models
from tasks.registry.decisions import settle
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.sources.columns import array
from tasks.sources.hub import NETWORK
from tasks.tracking.patience import answered, may_recover, reason
from tasks.tracking.versions import Champion, find_champion
from tasks.training.precision import use_bfloat16

if TYPE_CHECKING:
    import numpy as np


def refuse_pickle(self: PickleSerializer, blob: bytes) -> Any:
    """Ours are JSON, but the file of a kept result says itself how it is to be read."""
    raise ValueError("a result that Prefect has kept is a pickle, which can hide code; delete the folder storage of it")


PickleSerializer.loads = refuse_pickle  # type: ignore[method-assign]

PROBE_TRAINING_ROWS = 3_000
"""The foundation model reads about 300 short texts a second on two cores: all 8,530 of Rotten Tomatoes took 28 s."""

TFIDF_TRAINING_ROWS = 100_000

MOST_FEATURES = 200_000

MOST_WEIGHTS = 500_000
"""Features times classes: with 77 classes, 26,000 features took 37 s and these took 11 s, for the same accuracy."""

WORD = r"(?u)\b\w+\b"

TFIDF_GRID = (1.0, 5.0, 25.0, 125.0)

PROBE_GRID = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the penalty to choose from."""


def evaluate_baseline(config: RunConfig, data: PreparedData, work: str) -> Evaluation:
    """The untouched foundation model with its fresh head."""
    baseline = evaluated("baseline", config, data, work)
    assert baseline
    return baseline


def evaluate_references(config: RunConfig, data: PreparedData, work: str) -> dict[str, Evaluation]:
    """Those of `evaluation.references` that there are for this run, by name."""
    found: dict[str, Evaluation] = {}
    for name in config.evaluation.references:
        if name == "zero_shot" and not objective(data.task).one_class:
            continue
        try:
            champion = current_champion(config.tracking.registered_model) if name == "champion" else None
            if name == "champion" and not champion:
                continue
            measured = evaluated(name, config, data, work, champion)
        except Exception as error:
            if name != "champion" or not may_recover(error):
                raise
            warn("The champion is not compared because it cannot be reached now (%s); the run goes on", reason(error))
            continue
        if measured:
            found[name] = measured
    return found


def current_champion(name: str | None) -> Champion | None:
    """Of the registered model; a promotion that broke off is completed first. MLflow is waited for a while."""
    if not name:
        return None

    def ask() -> Champion | None:
        settle(name)
        return find_champion(name)

    def waiting(error: Exception) -> None:
        tell("MLflow does not say which version is champion (%s); it is asked again", reason(error))

    return answered(ask, CHAMPION_SECONDS, waiting)


CHAMPION_SECONDS = 60
"""So long a run waits to hear which version is champion, before it goes on without; a server starts in less."""


def evaluated(
    name: str, config: RunConfig, data: PreparedData, work: str, champion: Champion | None = None
) -> Evaluation | None:
    """The cached result, unless the file that it points to is gone."""
    gone = not prediction_file(name, config, data, Path(work), champion).exists()
    found = evaluate.with_options(refresh_cache=gone)(name, config, data, work, champion)
    return Evaluation.model_validate(found) if found else None


def cache_key(context: Any, parameters: dict[str, Any]) -> str:
    # the path is part of it: a cached result points to a file in this folder
    work, asked = Path(parameters["work"]).resolve(), ("name", "config", "data", "champion")
    return f"{parameters['name']}-{measurement_key(*(parameters[name] for name in asked))}-{digest(work)}"


@task(
    name="evaluate",
    task_run_name="evaluate {name}",
    **NETWORK,
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
    description="A classifier that the adapter is compared with, on the test rows",
)
def evaluate(
    name: str, config: RunConfig, data: PreparedData, work: str, champion: Champion | None
) -> dict[str, Any] | None:
    """An Evaluation as plain values: Prefect keeps it as JSON, never as pickle. None where there is nothing to say."""
    try:
        return measure(name, config, data, Path(work), champion).model_dump()
    except ChampionLeftOut as reason:
        get_run_logger().warning("The champion is not compared: %s", reason)
        return None
    except ZeroShotLeftOut as reason:
        level = logging.WARNING if config.evaluation.asking_zero_shot else logging.INFO
        get_run_logger().log(level, "zero_shot is left out: %s", reason)
        return None


def measurement_key(name: str, config: RunConfig, data: PreparedData, champion: Champion | None = None) -> str:
    """Name of a measurement by all that it depends on; runs that differ in nothing else share it."""
    # the fingerprint says which texts, source and settings say which places in the source they have
    settings = config.data.model_dump(exclude={"name", "revision", "test_file", "corrections", "max_length"})
    texts = [data.fingerprint, data.source.content, settings]
    texts.append(environment_key())  # what other packages, code or threads gave may be a little different
    return digest([*texts, *MEASURES[name].depends_on(config, data, champion)])


def nothing_else(config: RunConfig, data: PreparedData, champion: Champion | None) -> list[Any]:
    return []


def on_the_model(config: RunConfig, data: PreparedData, champion: Champion | None) -> list[Any]:
    return [Path(data.folder).name, data.model.revision, config.model.model_dump(), config.evaluation.batch_size]


def on_the_model_and_its_head(config: RunConfig, data: PreparedData, champion: Champion | None) -> list[Any]:
    return [*on_the_model(config, data, champion), config.seed]


def on_the_question(config: RunConfig, data: PreparedData, champion: Champion | None) -> list[Any]:
    asked = config.evaluation
    words = [asked.zero_shot_template, asked.zero_shot_words, config.data.max_length]
    return [*on_the_model(config, data, champion), data.label_names, *words]


def on_the_champion(config: RunConfig, data: PreparedData, champion: Champion | None) -> list[Any]:
    return [champion and champion.source]


def prediction_file(
    name: str, config: RunConfig, data: PreparedData, work: Path, champion: Champion | None = None
) -> Path:
    key = measurement_key(name, config, data, champion)
    return (work / f"{name}-{key}").resolve() / f"{name}.parquet"


def measure(
    name: str, config: RunConfig, data: PreparedData, work: Path, champion: Champion | None = None
) -> Evaluation:
    """Scores of classifier `name`, and its predictions in a file under `work`."""
    from datasets import load_from_disk

    started = time.monotonic()
    table = MEASURES[name].ask(config, data, champion)
    file = prediction_file(name, config, data, work, champion)
    return write_evaluation(data.task, table, load_from_disk(data.folder)["test"], file, time.monotonic() - started)


def ask_foundation(config: RunConfig, data: PreparedData) -> "np.ndarray":
    """Answers for the test rows, (rows, columns), as from all below, of the foundation model with its fresh head."""
    import numpy as np
    from datasets import load_from_disk

    from tasks.models import serving

    splits, task = load_from_disk(data.folder), objective(data.task)

    tokenizer = models.load_tokenizer(data.model, config.model)
    model, _ = models.load_foundation(data.model, config, data.label_names, tokenizer)
    model = serving.on_best_device(model).eval()

    def logits(split: str) -> Any:
        rows = serving.model_rows(splits[split], tokenizer)
        return serving.classify(model, tokenizer, rows, config.evaluation.batch_size)

    known = labels = np.zeros((0, len(data.label_names)))
    if task.decided_on_validation:
        known, labels = logits("validation").numpy(), array(splits["validation"], "labels")
    settings = task.fit(known, labels, task.scaling(array(splits["train"], "labels")), calibrated=False)
    return serving.answers(logits("test"), {"activation": task.activation, **settings})


def decide(data: PreparedData, splits: Any, outputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
    """Answers for the test rows of a reference's `outputs`, by split, with what is to be chosen on validation."""

    from tasks.models import serving

    task = objective(data.task)
    settings = {}
    if task.decided_on_validation:
        settings = task.decision(outputs["validation"], array(splits["validation"], "labels"))
    return serving.decided(outputs["test"], settings)


def asked_splits(data: PreparedData) -> tuple[str, ...]:
    return ("validation", "test") if objective(data.task).decided_on_validation else ("test",)


def ask_majority(data: PreparedData) -> "np.ndarray":
    """Knows only how often each answer occurs in training."""
    import numpy as np
    from datasets import load_from_disk

    splits, outputs = load_from_disk(data.folder), len(data.label_names)
    constant = objective(data.task).constant(array(splits["train"], "labels"), outputs)
    tables = {split: np.tile(constant, (len(splits[split]), 1)) for split in asked_splits(data)}
    return decide(data, splits, tables)


def ask_tfidf(config: RunConfig, data: PreparedData) -> "np.ndarray":
    """A linear model of the words and pairs of words of each text column, side by side."""
    from datasets import load_from_disk
    from scipy.sparse import hstack

    splits, outputs = load_from_disk(data.folder), len(data.label_names)
    parts = {"train": training_rows(splits["train"], TFIDF_TRAINING_ROWS, data, config)}
    parts |= {split: splits[split] for split in asked_splits(data)}
    most = min(MOST_FEATURES, MOST_WEIGHTS // outputs)
    columns = [text_features([part[name][:] for part in parts.values()], most) for name in data.text_columns]
    features = (hstack(side, format="csr") for side in zip(*columns, strict=True))
    return learned(config, data, splits, parts, dict(zip(parts, features, strict=True)), TFIDF_GRID)


def learned(
    config: RunConfig,
    data: PreparedData,
    splits: Any,
    parts: Mapping[str, Any],
    features: Mapping[str, Any],
    grid: Sequence[float],
) -> "np.ndarray":
    """Answers for the test rows of a linear model of `features`, (rows, features) of each of `parts`."""

    (_, known), *asked = features.items()
    labels, outputs = array(parts["train"], "labels"), len(data.label_names)
    tables = objective(data.task).learn(
        known, labels, [part for _, part in asked], outputs, grid, config.data.split_seed
    )
    return decide(data, splits, dict(zip([name for name, _ in asked], tables, strict=True)))


def training_rows(split: Any, most: int, data: PreparedData, config: RunConfig) -> Any:
    """At most so many of the rows."""

    strata = objective(data.task).strata(array(split, "labels"))
    return split.select(stratified_rows(strata, int(strata.max()) + 1, min(most, len(split)), config.data.split_seed))


def text_features(texts: Sequence[Sequence[str]], most: int) -> list[Any]:
    """Sparse TF-IDF (texts, features) of each part, the first of which is learned from; of characters where words say
    nothing."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words: dict[str, Any] = {"token_pattern": WORD, "ngram_range": (1, 2)}
    characters: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
    train, *others = texts
    kind = words if words_recur(train[:10_000]) else characters
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=most, **kind)
    return [vectorizer.fit_transform(train), *map(vectorizer.transform, others)]


def words_recur(texts: Sequence[str]) -> bool:
    """Whether most words are in another text too. In a script without spaces, where a word is a clause, they are not;
    nor in names or signs."""
    texts_with = Counter(word for text in texts for word in set(re.findall(WORD, text.lower())))
    return 2 * sum(count for count in texts_with.values() if count > 1) > texts_with.total()


def ask_probe(config: RunConfig, data: PreparedData) -> "np.ndarray":
    """A linear model of what the frozen foundation model makes of each text."""
    from datasets import load_from_disk
    from sklearn.preprocessing import StandardScaler

    splits = load_from_disk(data.folder)
    parts = {"train": training_rows(splits["train"], PROBE_TRAINING_ROWS, data, config)}
    parts |= {split: splits[split] for split in asked_splits(data)}
    features = pooled_features(config, data, parts)
    scaler = StandardScaler().fit(features[0])
    scaled = dict(zip(parts, map(scaler.transform, features), strict=True))
    return learned(config, data, splits, parts, scaled, PROBE_GRID)


def pooled_features(config: RunConfig, data: PreparedData, splits: dict[str, Any]) -> list["np.ndarray"]:
    """For each of `splits`, (rows, width), what `pool_of` gives. Raises FloatingPointError naming the row whose
    features are no finite numbers."""
    import numpy as np

    from tasks.models import serving

    tokenizer = models.load_tokenizer(data.model, config.model)
    pool = pool_of(config, data.model, data.label_names, tokenizer)
    features = []
    for name, split in splits.items():
        table = pool(serving.model_rows(split, tokenizer))
        if not (finite := np.isfinite(table).all(1)).all():
            row = array(split, "row")[np.argmin(finite)]
            raise FloatingPointError(f"the foundation model has no finite features for {name} row {row}")
        features.append(table)
    return features


def pool_of(
    config: RunConfig, model: Source, label_names: Sequence[str], tokenizer: Any
) -> "Callable[[Any], np.ndarray]":
    """What makes features, (rows, width), of tokenized rows: the frozen foundation model's last hidden state, mean
    over the tokens that are no padding.

    In bfloat16 where training is: a reference learns from these, and no model is measured by them.
    """
    import numpy as np
    import torch

    from tasks.models import serving

    foundation, _ = models.load_foundation(model, config, label_names, tokenizer)
    body = serving.on_best_device(foundation).eval().base_model
    if foundation.config.is_encoder_decoder:
        body = body.get_encoder()

    precision = torch.autocast(foundation.device.type, torch.bfloat16, enabled=use_bfloat16(foundation))

    def pool(inputs: Any) -> Any:
        with precision:
            states = body(**inputs).last_hidden_state.float()
        real = inputs["attention_mask"][..., None]
        return states.masked_fill(real == 0, 0).sum(1) / real.sum(1)

    def pooled(rows: Any) -> "np.ndarray":
        found = serving.run_in_batches(pool, foundation.device, tokenizer, rows, config.evaluation.batch_size)
        table: np.ndarray = found.numpy().astype(np.float64)
        return table

    return pooled


class Measure(NamedTuple):
    """How a classifier of tasks/settings/rivals.py is measured."""

    ask: Callable[[RunConfig, PreparedData, Champion | None], "np.ndarray"]
    """Its answers for the test rows, (rows, columns)."""
    depends_on: Callable[[RunConfig, PreparedData, Champion | None], list[Any]] = nothing_else
    """Besides texts, environment and this program."""


MEASURES: dict[str, Measure] = {
    "baseline": Measure(lambda config, data, champion: ask_foundation(config, data), on_the_model_and_its_head),
    "majority": Measure(lambda config, data, champion: ask_majority(data)),
    "tfidf": Measure(lambda config, data, champion: ask_tfidf(config, data)),
    "probe": Measure(lambda config, data, champion: ask_probe(config, data), on_the_model),
    "zero_shot": Measure(lambda config, data, champion: ask_zero_shot(config, data), on_the_question),
    "champion": Measure(lambda config, data, champion: ask_champion(config, data, champion), on_the_champion),
}
