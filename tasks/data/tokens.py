"""Texts to tokens; of texts that were tokenized before, the tokens are taken over."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tasks.base.machine import code_key
from tasks.base.records import PreparedData, Source, digest, read_record
from tasks.models.foundation import model_texts
from tasks.settings.sections import DataConfig
from tasks.sources.columns import BATCH_ROWS

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict


MANY_ROWS = 50_000
"""Tokenizing more takes long enough to deserve a bar: about 20,000 rows a second on two cores."""

LOOKED_THROUGH = 3
"""Earlier preparations, newest first: data that grow were nearly all in the last one, but it may have been a trial."""


def key_of_tokens(model: Source, config: DataConfig) -> str:
    """Digest of what, besides the text, decides which tokens it becomes."""
    packages = [f"{name} {version(name)}" for name in ("transformers", "tokenizers")]
    return digest([model.revision, config.text_columns, config.max_length, packages, code_key()])


class KnownTexts:
    """Texts whose tokens are on disk. In memory are a hash and a place for each, 16 bytes."""

    def __init__(self, rows: "Dataset", text_columns: Sequence[str]) -> None:
        """`rows` have the text columns and what `tokenize` adds."""
        import numpy as np

        self.rows, self.text_columns = rows, list(text_columns)
        texts = rows.select_columns(self.text_columns)
        batches = [hashes([batch[name] for name in text_columns]) for batch in texts.iter(batch_size=BATCH_ROWS)]
        self.places = np.argsort(every := np.concatenate(batches), kind="stable")
        self.hashes = every[self.places]

    def find(self, texts: Sequence[Sequence[str]]) -> tuple[list[int], dict[str, list[Any]]]:
        """Which rows of these columns are known, and what `tokenize` added to those."""
        import numpy as np

        asked = hashes(texts)
        near = np.minimum(np.searchsorted(self.hashes, asked), len(self.hashes) - 1)
        rows: list[int] = np.flatnonzero(self.hashes[near] == asked).tolist()
        if not rows:
            return [], {}
        columns = self.rows[self.places[near[rows]].tolist()]
        found = zip(*(columns.pop(name) for name in self.text_columns), strict=True)
        # two texts may have the same hash
        same = [i for i, text in enumerate(found) if text == tuple(column[rows[i]] for column in texts)]
        return [rows[i] for i in same], {name: [values[i] for i in same] for name, values in columns.items()}


def hashes(texts: Sequence[Sequence[str]]) -> "np.ndarray":
    """A 64-bit hash of each row of these columns, the same in every process."""
    import pandas as pd

    frame = pd.DataFrame({str(i): pd.Series(column, dtype=object) for i, column in enumerate(texts)})
    return pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy()


def known_texts(work: Path, key: str, text_columns: Sequence[str]) -> KnownTexts | None:
    """Texts that were tokenized under `key` for earlier preparations in `work`; None where there are none."""
    import datasets

    parts: list[Dataset] = []
    files = sorted(work.glob("data-*/prepared.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for folder in [file.parent for file in files if is_of(file, key)][:LOOKED_THROUGH]:
        parts += tokenized_rows(folder, text_columns)
    return KnownTexts(datasets.concatenate_datasets(parts), text_columns) if parts else None


def is_of(file: Path, key: str) -> bool:
    prepared = read_record(PreparedData, file)
    return prepared is not None and prepared.tokens_key == key


def tokenized_rows(folder: Path, text_columns: Sequence[str]) -> list["Dataset"]:
    """Each split of an earlier preparation, with text columns and tokens alone; none where it is damaged."""
    import datasets

    try:
        splits = list(datasets.load_from_disk(str(folder)).values())
    except Exception:  # what is wrong with it does not matter: its texts are tokenized again
        return []
    own = ("row", "labels", *(name for name in splits[-1].column_names if name.startswith("slice ")))
    names = [name for name in splits[0].column_names if name in text_columns or name not in own]
    return [split.select_columns(names) for split in splits]


def tokenize(
    splits: "DatasetDict", tokenizer: Any, config: DataConfig, scratch: Path, known: KnownTexts | None = None
) -> "DatasetDict":
    """The splits with the tokenizer's columns, `length`, and `full_length`: tokens before any were cut off."""
    import datasets

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [batch[column] for column in config.text_columns]
        rows, taken = known.find(texts) if known else ([], {})
        new = sorted(set(range(len(texts[0]))).difference(rows))
        made = encode_texts([[column[row] for row in new] for column in texts], tokenizer, config) if new else {}
        order = sorted(range(len(texts[0])), key=[*rows, *new].__getitem__)
        both = {name: [*taken.get(name, ()), *made.get(name, ())] for name in made or taken}
        return {name: [values[i] for i in order] for name, values in both.items()}

    if sum(map(len, splits.values())) > MANY_ROWS:
        datasets.enable_progress_bars()
    tokenized = {
        role: split.map(
            encode,
            batched=True,
            desc="tokenizing",
            cache_file_name=str(scratch / f"{role}.arrow"),
            new_fingerprint=uuid4().hex,  # a hash of the tokenizer takes longer than tokenizing Rotten Tomatoes
        )
        for role, split in splits.items()
    }
    return datasets.DatasetDict(tokenized).rename_column("label", "labels")


def encode_texts(columns: Sequence[Sequence[str]], tokenizer: Any, config: DataConfig) -> dict[str, list[Any]]:
    texts = model_texts(columns, tokenizer)
    encoded = tokenizer(*texts, truncation=True, max_length=config.max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return {**encoded, "length": lengths, "full_length": full_lengths(texts, encoded, tokenizer, config.max_length)}


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
