"""A folder of data files: which file is which split, by its name. A file that is left out is named."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tasks.base.trouble import first_line
from tasks.settings.fields import InputError
from tasks.settings.fixed import SPLITS, data_kind
from tasks.sources.formats import notes_of
from tasks.sources.local import visible_files

Piece = tuple[Path, ...]
"""A data file; or text files, each of which is a row."""

WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing",
    "eval": "eval|evaluation",
}
"""What files and folders of a split are called."""

NOTHING_ELSE = r"(?:[-._ ]?(?:set|data|split))?(?:[-._ ]\d+[-._ ]of[-._ ]\d+.*)?"
"""What may follow such a word that says nothing else: `train_set`, `train-00000-of-00002`."""

NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that libraries write beside the data."""


class Folder(NamedTuple):
    splits: dict[str, list[Piece]]
    left_out: list[Path]
    sep: str | None = None
    """Between the columns of its csv files, where a README.md says so."""
    features: Any = None
    """What a README.md says of the columns, as `datasets.Features`."""
    whole: bool = False
    """The README.md asks for more than that: only `datasets` reads such a folder."""


def saved_by_datasets(path: Path) -> bool:
    """Whether it is what `save_to_disk` writes."""
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow")))


def look_into(path: Path, config: str | None = None) -> Folder:
    """Which files of a folder are which split, as the head of its README.md says, else by their names."""
    files = data_files(path)
    head = head_of_readme(path)
    if not config and not {"configs", "dataset_info"} & head.keys():
        return Folder(*sorted_by_name(path, files))
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(str(path), config)
    except Exception as error:
        if several := re.search(r"available configs: (\[.*?\])", str(error)):
            raise InputError(f"data.config: {path} has several; name one of {several[1]}") from error
        raise InputError(f"data.name: {path} cannot be read: {first_line(error)}") from error
    said: dict[str, list[Piece]] = {
        str(name): [(Path(file),) for file in found] for name, found in (builder.config.data_files or {}).items()
    }
    used = [file for pieces in said.values() for piece in pieces for file in piece]
    left_out = [file for file in files if file not in used and data_kind(file)]
    whole = not all(data_kind(file) and file.exists() for file in used)
    if not any("data_files" in one for one in head.get("configs", ()) if isinstance(one, Mapping)):
        said, left_out = sorted_by_name(path, files)
    options = options_of(builder)
    return Folder(said, left_out, options.get("sep"), builder.info.features, whole or not are_known(options))


def options_of(builder: Any) -> dict[str, Any]:
    """What a README.md asks for besides the usual, of a `datasets.DatasetBuilder`."""
    usual = type(builder.config)()
    values = {field.name: getattr(builder.config, field.name) for field in dataclasses.fields(usual)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def are_known(options: Mapping[str, Any]) -> bool:
    """Whether we can read files that are written so, and need not leave it to `datasets`."""
    return options.keys() <= NOT_OPTIONS and len(options.get("sep") or ",") == 1


NOT_OPTIONS = {"name", "data_files", "data_dir", "version", "description", "features", "sep", "delimiter"}
"""Of how `datasets` reads a file those that we know."""


def head_of_readme(path: Path) -> dict[str, Any]:
    """What a README.md says between its first two lines of dashes."""
    readme = path / "README.md"
    found = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text(errors="replace"), re.S) if readme.is_file() else None
    try:
        head = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        raise InputError(f"data.name: {path} cannot be read: the head of its README.md is not valid YAML") from None
    return head if isinstance(head, dict) else {}


def data_files(path: Path) -> list[Path]:
    """The files of data in a folder; text files, where there are no others and a folder says of what class they are."""
    files = visible_files(path)
    return [file for file in files if (data_kind(file) or file.suffix.lower() == ".txt") and file.name not in NO_DATA]


def sorted_by_name(folder: Path, files: Sequence[Path]) -> tuple[dict[str, list[Piece]], list[Path]]:
    """The splits, in a fixed order, and the files that are left out.

    A file that no word of its name gives to a split is a training row's, unless another is called `train` and nothing
    else: `january.csv` beside `train-march.csv` is trained on, `backup.csv` beside `train.csv` is not. A file whose
    word may mean something else, such as `dev_tools.csv`, is left out; it is trained on where there is nothing else.
    """
    texts = [file for file in files if not data_kind(file)]
    data = [file for file in files if data_kind(file)] or texts
    places = {file: file.relative_to(folder) for file in data}
    sure, loose = ({file: split_of(places[file], strict) for file in data} for strict in (True, False))
    named = {file: sure[file] or loose[file] for file in data}
    unclear = [file for file in unclear_words(places, named) if not sure[file]]
    nothing_else = not {"train", None}.intersection(named[file] for file in data if file not in unclear)
    named |= dict.fromkeys(unclear, None if nothing_else else "")
    if "eval" in named.values():
        free = next((role for role in ("test", "validation") if role not in named.values()), "")
        named = {file: free if role == "eval" else role for file, role in named.items()}
    rest = "" if "train" in sure.values() else "train"
    roles = {file: rest if role is None else role for file, role in named.items()}
    if data is texts:
        roles = {file: role if is_in_class(file.relative_to(folder)) else "" for file, role in roles.items()}
    in_order = dict.fromkeys((*SPLITS, *sorted(filter(None, roles.values()))))
    splits = {role: [file for file in data if roles[file] == role] for role in in_order}
    left_out = [file for file in data if not roles[file]] + (texts if data is not texts else [])
    pieces: dict[str, list[Piece]] = {
        role: [tuple(found)] if data is texts else [(file,) for file in found]
        for role, found in splits.items()
        if found
    }
    return pieces, left_out


def split_of(place: Path, strict: bool) -> str | None:
    """The split that a file's folders, else its name, say: with nothing else in it if `strict`."""
    said = parts_of(place)
    if strict and place.suffix.lower() != ".txt":
        said[-1] = said[-1].split(".")[0]
    for name in said:
        for role, words in WORDS.items():
            whole = re.fullmatch(f"(?:{words}){NOTHING_ELSE}", name, re.I)
            if whole or (not strict and re.search(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])", name, re.I)):
                return role
    of_the_hub = re.match(r"(\w+)-\d{5}-of-\d{5}", said[-1]) if said else None
    return of_the_hub[1] if of_the_hub else None


def parts_of(place: Path) -> list[str]:
    """What may name the split of a file: folders and name; of a text file the folders above that of its class."""
    return list(place.parts[:-2] if place.suffix.lower() == ".txt" else place.parts)


def unclear_words(places: Mapping[Path, Path], named: Mapping[Path, str | None]) -> list[Path]:
    """The files whose split's word may mean something else: `dev_tools.csv`, `AB test results.csv`.

    It does not where no other word stands beside it, where a file of another split has the same others
    (`imdb_test.csv` beside `imdb_train.csv` or `imdb.csv`), or where it is the first or last word of the name and so is
    `train` in another file's.
    """
    beside: dict[Key, set[str | None]] = {}
    for file, place in places.items():
        for key in keys_of(place):
            beside.setdefault(key, set()).add(named[file])
    words = {file: next(filter(has_word, parts_of(place)), "") for file, place in places.items()}
    is_usual = any(named[file] == "train" and AT_AN_END.search(bare(word)) for file, word in words.items())
    unclear = []
    for file, place in places.items():
        if named[file] in (None, "train") or not words[file]:
            continue
        key = keys_of(place)[parts_of(place).index(words[file])]
        if key[1] and beside[key] == {named[file]} and not (is_usual and AT_AN_END.search(bare(words[file]))):
            unclear.append(file)
    return unclear


Key = tuple[tuple[str, ...], tuple[str, ...]]
"""The folders above a folder or file, and the words in its name that say no split."""

ANY = "|".join(WORDS.values())

ONE_WORD = re.compile(rf"(?<![^\W\d_])(?:{ANY})(?![^\W\d_])", re.I)

AT_AN_END = re.compile(rf"^(?:{ANY})(?![^\W\d_])|(?<![^\W\d_])(?:{ANY})$", re.I)

SAYS_NOTHING = {"set", "data", "split", "of", "part", "v"}


def has_word(name: str) -> bool:
    return bool(ONE_WORD.search(bare(name)))


def bare(name: str) -> str:
    """Without the endings of data files."""
    while data_kind(name):
        name = Path(name).stem
    return name


def keys_of(place: Path) -> list[Key]:
    said = parts_of(place)
    words = (re.findall(r"[^\W\d_]+", ONE_WORD.sub(" ", bare(name)).lower()) for name in said)
    return [
        (tuple(said[:depth]), tuple(word for word in found if word not in SAYS_NOTHING))
        for depth, found in enumerate(words)
    ]


def is_in_class(place: Path) -> bool:
    """Whether the folder of a text file says its class, and not its split."""
    return len(place.parts) > 1 and split_of(Path(place.parts[-2]) / "x", strict=True) is None


def describe(folder: Path, found: Folder) -> list[str]:
    """Which files are which split, and which are left out."""
    used = {role: [file for piece in pieces for file in piece] for role, pieces in found.splits.items()}
    notes = ["; ".join(f"{role}: {names(files, folder)}" for role, files in used.items())]
    if found.left_out:
        data = next(filter(data_kind, found.left_out), None)
        role = split_of(Path(data.name), strict=False) if data else None
        advice = f"; called train-{data.name} it would be trained on" if data else ""
        advice += f", called {role}.csv used as {role}" if data and role else ""
        notes.append(f"not used: {names(found.left_out, folder)}{advice}")
    return notes


def names(files: Sequence[Path], folder: Path, most: int = 8) -> str:
    """`a.csv, b.csv and 12 more`; of many text files their folders."""
    shown = [str(file.relative_to(folder)) for file in files]
    if len(files) > most and all(file.suffix.lower() == ".txt" for file in files):
        texts = Counter(str(file.parent.relative_to(folder)) for file in files)
        shown = [f"{count:,} texts of {name}" for name, count in texts.items()]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def how_read(files: Sequence[Path]) -> list[str]:
    """What `notes_of` says, once for files that say the same."""
    return list(dict.fromkeys(note for file in files for note in notes_of(file)))
