"""The data of a run, tokenized and saved under a name made from its content."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks.base.files import whole, write_text
from tasks.base.machine import environment_key
from tasks.base.records import PreparedData, Source, digest
from tasks.base.work import work_folder
from tasks.data.corrections import CORRECTIONS_FILE
from tasks.data.datacheck import CHECK_FILE, PAGE_FILE, make_check
from tasks.data.splits import Splits, read_splits
from tasks.data.targets import labels_of
from tasks.data.tokens import key_of_tokens, known_texts, tokenize
from tasks.models import foundation as models
from tasks.models.adapter import check_adapter
from tasks.models.sharding import check_sharding
from tasks.models.trial import try_model
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEMO_DATA, SPLITS
from tasks.settings.loading import did_you_mean
from tasks.sources.columns import numbers
from tasks.sources.hub import NETWORK, find, patient
from tasks.sources.local import file_revision
from tasks.tracking.flow import flow_tags
from tasks.tracking.run import tracked_run

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@task(
    name="find input",
    task_run_name="find input",
    **NETWORK,
)
def find_input(config: RunConfig) -> tuple[Source, Source]:
    """Data set and foundation model, pinned: what the run is about, by content."""
    return find_data(config), models.find_model(config)


@task(
    name="prepare data",
    task_run_name="prepare data",
    **NETWORK,
)
def prepare_data(config: RunConfig, data: Source, model: Source, work: str) -> PreparedData:
    return prepare(config, Path(work), (data, model))


def prepare(config: RunConfig, work: Path, found: tuple[Source, Source] | None = None) -> PreparedData:
    """The data tokenized under `work/data-KEY`, made or reused; `label` is called `labels` there, as Trainer wants.

    Raises InputError for anything about data or tokenizer that the user must change, and DiskFull.
    """
    data, model = check_input(config, found)
    settings = config.data.model_dump(exclude={"name", "revision", "test_file", "corrections"})
    # not the run's seed: runs that differ only by seed share rows, tokens and fingerprint
    key = digest([data.name, data.content, settings, model.name, model.revision, environment_key()])
    folder = (work / f"data-{key}").resolve()
    if (folder / "prepared.json").exists():
        return PreparedData.model_validate_json((folder / "prepared.json").read_bytes()).model_copy(
            update={"folder": str(folder), "source": data, "model": model}
        )
    splits = read_splits(data, config.data)
    tokenizer = models.load_tokenizer(model, config.model)
    work.mkdir(parents=True, exist_ok=True)
    needed = bytes_of(splits.datasets)
    tokens_key = key_of_tokens(model, config.data)
    known = known_texts(work, tokens_key, config.data.text_columns)
    shutil.rmtree(folder, ignore_errors=True)  # without its record it is of no use
    with (
        whole(folder, needed, replace=False) as finished,  # another run may prepare the same data meanwhile
        tempfile.TemporaryDirectory(prefix=".data-", dir=work) as temporary,
    ):
        tokenized = tokenize(splits.datasets, tokenizer, config.data, Path(temporary), known)
        tokenized.save_to_disk(str(finished))
        lengths = {name: numbers(split, "full_length") for name, split in tokenized.items()}
        check, page = make_check(splits, lengths, config.data)
        check.write(finished / CHECK_FILE)
        write_text(finished / PAGE_FILE, page)
        prepared = PreparedData(
            folder=str(folder),
            source=data,
            model=model,
            tokens_key=tokens_key,
            fingerprint=fingerprint(splits.datasets, config.data.text_columns, splits.label_names),
            test_fingerprint=fingerprint(splits.datasets, config.data.text_columns, splits.label_names, ("test",)),
            task=splits.task,
            label_names=splits.label_names,
            text_columns=config.data.text_columns,
            slice_columns=splits.slice_columns,
            row_counts={name: len(split) for name, split in splits.datasets.items()},
            class_counts={name: tuple(counts_of(split, splits)) for name, split in splits.datasets.items()},
            truncated=sum(check.truncated.values()),
            notes=splits.notes,
            corrections=splits.corrections and splits.corrections.counts,
        )
        if splits.corrections:
            splits.corrections.write(finished / CORRECTIONS_FILE)
        prepared.write(finished / "prepared.json")
    return prepared


def counts_of(split: "Dataset", splits: Splits) -> list[int]:
    """Rows with each label."""
    has = objective(splits.task).indicator(labels_of(split), len(splits.label_names))
    counts: list[int] = has.sum(0).tolist()
    return counts


def bytes_of(splits: "DatasetDict") -> int:
    """About what these splits need on disk, tokenized: the token columns are as large as their texts, all is written
    twice, and the larger half is gone in the end."""
    return sum(4 * split.data.nbytes * len(split) // max(1, split.data.num_rows) for split in splits.values())


def check_input(config: RunConfig, found: tuple[Source, Source] | None = None) -> tuple[Source, Source]:
    """Data set and model of this run, found and checked: what costs little and what a user can get wrong.

    Raises InputError. The rows are remembered, so that a following `prepare` does not read them again.
    """
    data = found[0] if found else find_data(config)
    check_training(patient(read_splits)(data, config.data), config)
    model = found[1] if found else models.find_model(config)
    empty = models.check_model(model, config)
    check_adapter(empty, model, config)
    check_sharding(empty, model, config)
    # weights come from the Hub within the flow, where Prefect waits for one that breaks off
    if found or model.is_local:
        try_model(model, config)
    return data, model


def check_training(splits: Splits, config: RunConfig) -> None:
    """Raises InputError for what the task of these rows does not have."""
    task, training = objective(splits.task), config.training
    metrics = [metric.name for metric in task.metrics]
    if training.selection_metric and training.selection_metric not in metrics:
        raise InputError(
            f"training.selection_metric: {training.selection_metric} is not a score of {task.name}; there are "
            f"{', '.join(metrics)}"
        )
    has_labels = len(counts_of(splits.datasets["train"], splits)) > 0
    for field, asked in (("class_weights", training.class_weights != "none"), ("focal_gamma", training.focal_gamma)):
        if asked and not has_labels:
            raise InputError(f"training.{field}: a number has no classes; leave it out")
    if (fields := config.evaluation.asking_zero_shot) and not task.one_class:
        raise InputError(
            f"evaluation.{fields[0]}: zero_shot is for single_label, and these rows are for {task.name}; leave it out"
        )
    weights, words = training.weights(), config.evaluation.zero_shot_words
    weighted = weights if isinstance(weights, dict) else {}
    for field, named in (("training.class_weights", set(weighted)), ("evaluation.zero_shot_words", set(words))):
        for name in sorted(named.difference(splits.label_names)):
            raise InputError(f"{field}: there is no class '{name}'; {did_you_mean(name, splits.label_names)}")


def find_data(config: RunConfig) -> Source:
    files = {"test_revision": config.data.test_file, "corrections_revision": config.data.corrections}
    fields = {"test_revision": "data.test_file", "corrections_revision": "data.corrections"}
    revisions = {name: file_revision(fields[name], file) for name, file in files.items() if file}
    if config.data.name == DEMO_DATA:
        from tasks.sources.demo import demo_reviews

        found = find("dataset", str(demo_reviews()), "main", offline=True)
    else:
        found = find("dataset", config.data.name, config.data.revision, config.offline)
    return found.model_copy(update=revisions)


def fingerprint(
    splits: "DatasetDict", text_columns: Sequence[str], label_names: Sequence[str], roles: Sequence[str] = SPLITS
) -> str:
    """sha256 of what a classifier can see of these splits: the same rows from csv and from the Hub give the same."""
    total = hashlib.sha256()
    for part in fingerprint_parts(splits, text_columns, label_names, roles):
        encoded = part.encode("utf-8", "surrogatepass")
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()


def fingerprint_parts(
    splits: "DatasetDict", text_columns: Sequence[str], label_names: Sequence[str], roles: Sequence[str]
) -> Iterator[str]:
    yield from (str(len(label_names)), *label_names)
    for role in roles:
        yield f"{role} {len(splits[role])}"
        for batch in splits[role].select_columns([*text_columns, "label"]).iter(batch_size=1000):
            for *texts, label in zip(*(batch[column] for column in text_columns), batch["label"], strict=True):
                yield from (*texts, str(label))


def found_input(config: RunConfig, run: RunConfig) -> tuple[Source, Source]:
    """Data set and foundation model of `config`; where they are not found, `run` is a failed run in MLflow too."""
    try:
        return find_input(config)
    except Exception:
        with tracked_run(run, work_folder(run), flow_tags()):
            raise
