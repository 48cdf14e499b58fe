"""Models and data sets that are files or folders of this machine: found, checked, and known by their content."""

import hashlib
import os
from pathlib import Path
from typing import Literal

from tasks.base.machine import where_paths_lead
from tasks.base.records import file_sha256
from tasks.settings.fields import InputError
from tasks.settings.fixed import WHAT_IS_READ, data_kind

Kind = Literal["model", "dataset"]

SECTION = {"model": "model", "dataset": "data"}
"""Where a run's configuration names each kind."""

MOST_FILES = 10_000
"""In a local folder, besides texts, each of which may be a row. Every one is read to know its content."""


def local_path(kind: Kind, name: str) -> Path | None:
    """The file or folder `name`; None where it is a name on the Hub. InputError for a path that leads nowhere."""
    field = f"{SECTION[kind]}.name"
    try:
        path = Path(name).expanduser()
        if path.exists():
            (check_model_folder if kind == "model" else check_data_path)(path)
            return path
    except (OSError, RuntimeError) as error:
        raise cannot_be_read(field, getattr(error, "filename", None) or name, error) from None
    if looks_like_path(name):
        raise InputError(f"{field}: there is no file or folder {name}; {where_paths_lead()}")
    return None


def cannot_be_read(field: str, name: str, error: OSError | RuntimeError) -> InputError:
    """No permission, a name longer than names can be, or a `~` that leads nowhere."""
    nobody = "~ is followed by a user who does not exist; check the path"
    return InputError(f"{field}: {name} cannot be read: {error.strerror if isinstance(error, OSError) else nobody}")


def check_model_folder(path: Path) -> None:
    """Refuses what is not a model before all of it is read: somebody's home folder takes hours."""
    if path.is_file():
        raise InputError(f"model.name: {path} is a file; give the folder that holds config.json and the weights")
    if not (path / "config.json").is_file():
        raise InputError(f"model.name: {path} holds no config.json; give the folder with config.json and the weights")


def check_data_path(path: Path) -> None:
    """Refuses what holds no data before all of it is read, and before a pipe is waited for."""
    if not path.is_file() and not path.is_dir():
        raise InputError(f"data.name: {path} is neither a file nor a folder")
    if path.is_file() and not data_kind(path):
        raise InputError(f"data.name: {no_data_file(path)}")
    if path.is_dir() and not any(data_kind(file) or file.suffix.lower() == ".txt" for file in visible_files(path)):
        raise InputError(f"data.name: {path} holds no file of data; what is read: {WHAT_IS_READ}")


def test_path(name: str) -> Path:
    return file_path("data.test_file", name)


def file_path(field: str, name: str) -> Path:
    """Of the data file `name` that `field` gives; InputError where it is not a file that can be read."""
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(f"{field}: there is no file {name}; {where_paths_lead()}")
    except (OSError, RuntimeError) as error:
        raise cannot_be_read(field, name, error) from None
    if not data_kind(path):
        raise InputError(f"{field}: {no_data_file(path)}")
    return path


def file_revision(field: str, name: str) -> str:
    """`sha256:` of the content of the data file `name` that `field` gives; InputError where it cannot be read."""
    try:
        return f"sha256:{file_sha256(file_path(field, name))}"
    except OSError as error:  # no permission
        raise InputError(f"{field}: {name} cannot be read: {error.strerror}") from None


SHEET, ARCHIVE, COLUMNS = (
    "save it as .xlsx or CSV UTF-8",
    "unpack it, and give the file or folder",
    "if it has columns, rename it to .csv or .tsv",
)

WAYS = {
    **dict.fromkeys((".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), SHEET),
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), ARCHIVE),
    **dict.fromkeys((".txt", ".tab", ".dat", ".data"), COLUMNS),
    **dict.fromkeys((".pkl", ".pickle"), "in pandas write it as parquet; a pickle can hide code"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "write the table as csv or parquet"),
    ".jsonlines": "rename it to .jsonl",
}
"""What to do with other files that people have."""


def no_data_file(path: Path) -> str:
    way = WAYS.get(path.suffix.lower())
    return f"{path} is not a data file; {f'{way}. What' if way else 'what'} is read: {WHAT_IS_READ}"


def looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1 or data_kind(name) is not None


def content_sha256(path: Path) -> str:
    """`sha256:` over names and bytes of the file, or of each file in the folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else visible_files(path):
        total.update(f"{file.relative_to(path) if file != path else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def visible_files(folder: Path) -> list[Path]:
    """Every file in `folder` and below, in order, without those whose path has a part that starts with a dot,
    and those that Excel writes beside a file that is open.

    Raises InputError where they are so many that this is another folder than was meant, and for what is not a file: a
    library that opens a pipe waits for ever.
    """
    files, count = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]  # .git alone may hold more files, and sockets
        for path in (Path(place, name) for name in names if not name.startswith((".", "~$"))):  # ~$: open in Excel
            if path.is_file():
                files.append(path)
                count += path.suffix.lower() != ".txt"
            elif path.exists():
                raise InputError(f"{path} is a pipe or device, not a file; remove it")
        if count > MOST_FILES:
            raise InputError(
                f"{folder} holds more than {MOST_FILES:,} files; give the model's or data set's own folder"
            )
    return sorted(files)
