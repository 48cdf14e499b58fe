"""The data of a run, tokenized and saved under a name made from its content."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.tasks import exponential_backoff

from tasks import model as models
from tasks.adapter import check_adapter
from tasks.config import DEMO_DATA, SPLITS, DataConfig, RunConfig
from tasks.datacheck import CHECK_FILE, PAGE_FILE, make_check
from tasks.hub import find, network_may_recover
from tasks.records import PreparedData, Source, digest, write_text
from tasks.splits import read_splits

if TYPE_CHECKING:
    from datasets import DatasetDict

MANY_ROWS = 50_000
"""Tokenizing more takes long enough to deserve a bar: about 20,000 rows a second on two cores."""


@task(
    name="prepare data",
    task_run_name="prepare data",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_condition_fn=network_may_recover,
)
def prepare_data(config: RunConfig, work: str) -> PreparedData:
    return prepare(config, Path(work))


def prepare(config: RunConfig, work: Path) -> PreparedData:
    """The data tokenized under `work/data-KEY`, made or reused; `label` is called `labels` there, as Trainer wants.

    Raises InputError for anything about data or tokenizer that the user must change.
    """
    import numpy as np

    data, model = check_input(config)
    settings = config.data.model_dump(exclude={"name", "revision"})
    # not the run's seed: runs that differ only by seed share rows, tokens and fingerprint
    key = digest([data.name, data.revision, settings, model.name, model.revision])
    folder = (work / f"data-{key}").resolve()
    if (folder / "prepared.json").exists():
        return PreparedData.model_validate_json((folder / "prepared.json").read_bytes()).model_copy(
            update={"folder": str(folder), "source": data, "model": model}
        )
    splits = read_splits(data, config.data)
    tokenizer = models.load_tokenizer(model, config.model)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".data-", dir=work) as temporary:
        tokenized = tokenize(splits.datasets, tokenizer, config.data, Path(temporary))
        finished = Path(temporary) / "finished"
        tokenized.save_to_disk(str(finished))
        lengths = {name: np.asarray(split["full_length"][:]) for name, split in tokenized.items()}
        check, page = make_check(splits, lengths, config.data)
        check.write(finished / CHECK_FILE)
        write_text(finished / PAGE_FILE, page)
        prepared = PreparedData(
            folder=str(folder),
            source=data,
            model=model,
            fingerprint=fingerprint(splits.datasets, config.data.text_columns, splits.label_names),
            test_fingerprint=fingerprint(splits.datasets, config.data.text_columns, splits.label_names, ("test",)),
            label_names=splits.label_names,
            text_columns=config.data.text_columns,
            slice_columns=splits.slice_columns,
            class_counts={
                name: tuple(class_counts(split["label"][:], len(splits.label_names)))
                for name, split in splits.datasets.items()
            },
            truncated=sum(check.truncated.values()),
            notes=splits.notes,
        )
        prepared.write(finished / "prepared.json")
        try:
            finished.rename(folder)
        except OSError:
            if not (folder / "prepared.json").exists():  # else another run prepared the same data meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                finished.rename(folder)
    return prepared


def check_input(config: RunConfig) -> tuple[Source, Source]:
    """Data set and model of this run, found and checked: what costs little and what a user can get wrong.

    Raises InputError. The rows are remembered, so that a following `prepare` does not read them again.
    """
    model = models.find_model(config)
    check_adapter(models.check_model(model, config), model, config)
    data = find_data(config)
    read_splits(data, config.data)
    return data, model


def find_data(config: RunConfig) -> Source:
    if config.data.name == DEMO_DATA:
        from tasks.demo import demo_reviews

        return find("dataset", str(demo_reviews()), "main", offline=True)
    return find("dataset", config.data.name, config.data.revision, config.offline)


def tokenize(splits: "DatasetDict", tokenizer: Any, config: DataConfig, scratch: Path) -> "DatasetDict":
    """The splits with the tokenizer's columns, `length`, and `full_length`: tokens before any were cut off."""
    import datasets

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = models.model_texts([batch[column] for column in config.text_columns], tokenizer)
        encoded = tokenizer(*texts, truncation=True, max_length=config.max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return {**encoded, "length": lengths, "full_length": full_lengths(texts, encoded, tokenizer, config.max_length)}

    if sum(map(len, splits.values())) > MANY_ROWS:
        datasets.enable_progress_bars()
    tokenized = splits.map(
        encode,
        batched=True,
        desc="tokenizing",
        cache_file_names={role: str(scratch / f"{role}.arrow") for role in splits},
    )
    return tokenized.rename_column("label", "labels")


def full_lengths(texts: Sequence[Sequence[str]], encoded: Any, tokenizer: Any, max_length: int) -> list[int]:
    """Tokens of each text before it was cut to `max_length`, special tokens included."""
    if encoded.encodings and len(texts) == 1:  # a fast tokenizer keeps what it cut off
        special = tokenizer.num_special_tokens_to_add(pair=False)
        return [len(row) + sum(len(piece) - special for piece in row.overflowing) for row in encoded.encodings]
    # of a pair it keeps every combination of pieces: those that may have been cut are tokenized again
    full = [len(ids) for ids in encoded["input_ids"]]
    if rows := [row for row, length in enumerate(full) if length >= max_length]:
        whole = tokenizer(*([column[row] for row in rows] for column in texts), truncation=False, verbose=False)
        for row, ids in zip(rows, whole["input_ids"], strict=True):
            full[row] = len(ids)
    return full


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


def class_counts(labels: Sequence[int], classes: int) -> list[int]:
    import numpy as np

    return [int(count) for count in np.bincount(np.asarray(labels), minlength=classes)]
