"""A folder of data files that grows: each file is read once, and known by its content from then on."""

import dataclasses
from pathlib import Path
from typing import Any

from tasks.records import digest, file_sha256

MOST_APART = 500
"""Files of a folder that are read one by one. Each stays open, and a process may have about 1,000 open."""


def kept_files(builder: Any) -> dict[str, Path]:
    """Each file that `builder`, a `datasets.DatasetBuilder`, would read, and where its rows are kept once it has been.

    The place is named by the file's content and by how it is read. Empty where the files cannot be read one by one:
    they are too many, or the head of a README.md says what is in them together.
    """
    import datasets

    files = [file for split in builder.config.data_files.values() for file in split]
    if len(files) > MOST_APART or builder.info.features or builder.info.splits:
        return {}
    fields = {field.name for field in dataclasses.fields(builder.config)} - {"name", "data_files"}
    how = [datasets.__version__, builder.name, {name: getattr(builder.config, name) for name in fields}]
    root = Path(datasets.config.HF_DATASETS_CACHE) / "files"
    return {file: root / digest([file_sha256(Path(file)), how]) for file in files}


def read_apart(builder: Any, kept: dict[str, Path]) -> Any:
    """The splits as a DatasetDict, from `kept` what is there; None where the files' columns are not all alike.

    Read together, files that are not alike are made so or refused, as `datasets` thinks fit; alike, they give the same
    rows either way. What goes wrong goes wrong together too, and is then explained.
    """
    import datasets

    loaded, features = datasets.DatasetDict(), None
    try:
        for split, files in builder.config.data_files.items():
            parts = [part for file in files for part in read_file(builder, file, kept[file])]
            features = features or parts[0].features
            if any(part.features != features for part in parts):
                return None
            names = list(features)
            ordered = [part if part.column_names == names else part.select_columns(names) for part in parts]
            loaded[str(split)] = datasets.concatenate_datasets(ordered)
    except Exception:
        return None
    return loaded


def read_file(builder: Any, file: str, place: Path) -> list[Any]:
    """The rows of a file as `builder` reads them, in one Dataset or more; from `place`, if they are there."""
    from datasets import Dataset
    from datasets.data_files import DataFilesDict, DataFilesList

    if not place.exists():
        settings = builder.config_kwargs | {"data_files": DataFilesDict({"train": DataFilesList([file], [("",)])})}
        alone = type(builder)(str(place.parent), "file", builder.config.name, builder.hash, **settings)
        alone.download_and_prepare(str(place))
    return [Dataset.from_file(str(part)) for part in sorted(place.glob("*.arrow"))]
