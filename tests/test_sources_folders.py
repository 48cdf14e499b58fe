"""Which file of a folder is which split: no file vanishes without a word."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.sources import reading
from tasks.sources.folders import describe, look_into
from tasks.sources.hub import find
from tests.test_data_splits import film_reviews, read, write


def load(folder: Path, **fields: Any) -> Any:
    config = validated({"data": {"name": str(folder), **fields}}).data
    return reading.load(find("dataset", str(folder), "main", offline=True), config)


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        ("a.csv b.csv", {"train": "a.csv b.csv"}),
        ("train.csv dev.csv test.csv", {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}),
        ("Train.CSV Valid.csv", {"train": "Train.CSV", "validation": "Valid.csv"}),
        # the word among others: those without any are train too
        ("january.csv train-march.csv", {"train": "january.csv train-march.csv"}),
        ("bus_tickets.csv train_tickets.csv", {"train": "bus_tickets.csv train_tickets.csv"}),
        ("january.csv train-2.csv test.csv", {"train": "january.csv train-2.csv", "test": "test.csv"}),
        ("imdb_train.csv imdb_test.csv", {"train": "imdb_train.csv", "test": "imdb_test.csv"}),
        ("x.train.csv x.test.csv", {"train": "x.train.csv", "test": "x.test.csv"}),
        ("contest.csv trained.csv devices.csv", {"train": "contest.csv devices.csv trained.csv"}),
        # the word alone: others are left out
        ("train.csv backup.csv", {"train": "train.csv", "": "backup.csv"}),
        ("train/a.csv b.csv", {"train": "train/a.csv", "": "b.csv"}),
        ("train_set.csv old.csv", {"train": "train_set.csv", "": "old.csv"}),
        ("train.csv train-march.csv backup.csv", {"train": "train-march.csv train.csv", "": "backup.csv"}),
        ("train.csv sample.json test.csv", {"train": "train.csv", "test": "test.csv", "": "sample.json"}),
        # a word that may mean something else
        ("reviews.csv dev_tools.csv", {"train": "reviews.csv", "": "dev_tools.csv"}),
        ("emails.csv valid_mails.csv", {"train": "emails.csv", "": "valid_mails.csv"}),
        ("reviews.csv AB_test_results.csv", {"train": "reviews.csv", "": "AB_test_results.csv"}),
        ("train.csv AB_test_results.csv", {"train": "train.csv", "": "AB_test_results.csv"}),
        ("dev_tools.csv garden_tools.csv", {"train": "garden_tools.csv", "": "dev_tools.csv"}),
        ("reviews/a.csv ab_test/b.csv", {"train": "reviews/a.csv", "": "ab_test/b.csv"}),
        ("AB_test_results.csv", {"train": "AB_test_results.csv"}),
        ("dev_tools.csv valid_mails.csv", {"train": "dev_tools.csv valid_mails.csv"}),
        ("test.csv AB_test_results.csv", {"train": "AB_test_results.csv", "test": "test.csv"}),
        # and where it does not
        ("train_tickets.csv test_tickets.csv", {"train": "train_tickets.csv", "test": "test_tickets.csv"}),
        ("a_train_x.csv a_test_x.csv", {"train": "a_train_x.csv", "test": "a_test_x.csv"}),
        ("reviews.csv reviews_test.csv", {"train": "reviews.csv", "test": "reviews_test.csv"}),
        ("reviews_2024.csv reviews_2025.csv reviews_test.csv",
         {"train": "reviews_2024.csv reviews_2025.csv", "test": "reviews_test.csv"}),
        ("reviews.csv test2.csv dev-2024.csv",
         {"train": "reviews.csv", "validation": "dev-2024.csv", "test": "test2.csv"}),
        ("train.csv test_gold.csv dev_matched.csv",
         {"train": "train.csv", "validation": "dev_matched.csv", "test": "test_gold.csv"}),
        ("imdb_train.csv final_test.csv", {"train": "imdb_train.csv", "test": "final_test.csv"}),
        ("imdb_train/a.csv imdb_test/b.csv", {"train": "imdb_train/a.csv", "test": "imdb_test/b.csv"}),
        ("r_all.csv r_dev.csv r_test.csv", {"train": "r_all.csv", "validation": "r_dev.csv", "test": "r_test.csv"}),
        # eval
        ("train.csv eval.csv", {"train": "train.csv", "test": "eval.csv"}),
        ("train.csv eval.csv test.csv", {"train": "train.csv", "validation": "eval.csv", "test": "test.csv"}),
        (
            "train.csv dev.csv eval.csv test.csv",
            {"train": "train.csv", "validation": "dev.csv", "test": "test.csv", "": "eval.csv"},
        ),
        # folders
        ("train/x.csv test/x.csv", {"train": "train/x.csv", "test": "test/x.csv"}),
        ("data/train-00000-of-00001.csv", {"train": "data/train-00000-of-00001.csv"}),
        (
            "data/train-00000-of-00001.csv data/extra-00000-of-00001.csv",
            {"train": "data/train-00000-of-00001.csv", "extra": "data/extra-00000-of-00001.csv"},
        ),
        # formats
        ("train.csv test.jsonl", {"train": "train.csv", "test": "test.jsonl"}),
        ("train.csv.gz test.tsv", {"train": "train.csv.gz", "test": "test.tsv"}),
        ("train.csv dataset_info.json README.md", {"train": "train.csv"}),
        ("train.csv notes.txt", {"train": "train.csv", "": "notes.txt"}),
        # texts in folders named by class
        ("pos/1.txt neg/1.txt", {"train": "neg/1.txt pos/1.txt"}),
        ("train/pos/1.txt test/neg/1.txt", {"train": "train/pos/1.txt", "test": "test/neg/1.txt"}),
        ("pos/1.txt dev_ops/1.txt", {"train": "dev_ops/1.txt pos/1.txt"}),
        ("train/pos/1.txt train/urls.txt words.txt", {"train": "train/pos/1.txt", "": "train/urls.txt words.txt"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_names_say_the_split_and_what_is_left_out_is_known(files: str, splits: dict[str, str], tmp_path: Path) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = look_into(tmp_path)
    told = {
        role: " ".join(str(f.relative_to(tmp_path)) for p in pieces for f in p) for role, pieces in found.splits.items()
    }
    left_out = " ".join(str(file.relative_to(tmp_path)) for file in found.left_out)
    assert told | ({"": left_out} if left_out else {}) == splits


def test_what_was_used_for_what_and_what_was_not_is_reported(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "backup.csv", *(f"old/{month}.csv" for month in range(12))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    used, left_out = describe(tmp_path, look_into(tmp_path))
    assert used == "train: train.csv; test: test.csv"
    assert left_out.startswith("not used: backup.csv, old/0.csv, old/1.csv, ")
    assert left_out.endswith(" and 5 more; called train-backup.csv it would be trained on")


def test_file_whose_word_may_mean_something_else_is_told_how_to_be_used(tmp_path: Path) -> None:
    for name in ("reviews.csv", "dev_tools.csv"):
        (tmp_path / name).touch()
    assert describe(tmp_path, look_into(tmp_path)) == [
        "train: reviews.csv",
        "not used: dev_tools.csv; called train-dev_tools.csv it would be trained on, called validation.csv used as "
        "validation",
    ]


def test_of_many_text_files_the_folders_are_named(tmp_path: Path) -> None:
    for name in ("train/pos", "train/neg", "test/pos"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(9):
            (tmp_path / name / f"{number}.txt").touch()
    (told,) = describe(tmp_path, look_into(tmp_path))
    assert told == "train: 9 texts of train/neg, 9 texts of train/pos; test: 9 texts of test/pos"


# the head of a README.md


CONFIGS = """---
configs:
- config_name: plain
  data_files: plain/*
- config_name: other
  default: true
  sep: ";"
  data_files:
  - split: train
    path: [b.csv, a.csv]
  - split: held_out
    path: c.csv
---
"""


def test_head_of_the_readme_says_which_files_are_read_and_how(tmp_path: Path) -> None:
    for place, name in enumerate(("a.csv", "b.csv", "c.csv", "test.csv")):
        film_reviews(10)[24 * place :][:24].to_csv(tmp_path / name, index=False, sep=";")
    write(film_reviews(1), tmp_path / "plain/d.csv")
    (tmp_path / "README.md").write_text(CONFIGS)
    loaded = load(tmp_path, config="other")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 48, "held_out": 24}
    assert list(loaded["train"]["text"]) == [*film_reviews(10)["text"][24:48], *film_reviews(10)["text"][:24]]
    assert [file.name for file in look_into(tmp_path, "other").left_out] == ["d.csv", "test.csv"]
    assert len(load(tmp_path, config="plain")["train"]) == 12


def test_head_that_names_no_files_leaves_them_to_their_names(tmp_path: Path) -> None:
    for name in ("january.csv", "train-march.csv"):
        write(film_reviews(1).assign(label=[0, 1] * 6), tmp_path / name)
    info = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    info += "      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    (tmp_path / "README.md").write_text(f"---\n{info}---\n")
    train = load(tmp_path)["train"]
    assert train.features["label"].names == ["bad", "good"] and list(train["label"]) == [0, 1] * 12


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("skiprows: 1", "made by a program\ntext,label\nNA,0100\n,\n"),
        ('sep: "::"', "text::label\nNA::0100\n::\n"),
        ("column_names: [text, label]", "NA,0100\n,\n"),
        ("comment: '#'", "text,label\nNA,0100\n#\n,\n"),
    ],
)
@pytest.mark.filterwarnings("ignore:Falling back to the 'python' engine")
def test_what_only_datasets_understands_is_left_to_it_but_for_guesses(
    option: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  {option}\n  data_files: a.csv\n---\n"
    )
    assert load(tmp_path)["train"][:] == {"text": ["NA", ""], "label": ["0100", ""]}


def test_kinds_that_the_readme_gives_hold_also_for_what_only_datasets_understands(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n# a remark\n10,1\nNA,0\n")
    kind = "dtype:\n      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    info = f"dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    {kind}"
    (tmp_path / "README.md").write_text(
        f"---\n{info}configs:\n- config_name: default\n  comment: '#'\n  data_files: a.csv\n---\n"
    )
    train = load(tmp_path)["train"]
    assert train.features["label"].names == ["bad", "good"] and train[:] == {"text": ["10", "NA"], "label": [1, 0]}


def test_unknown_configuration_is_refused(tmp_path: Path) -> None:
    write(film_reviews(1), tmp_path / "a.csv")
    with pytest.raises(InputError, match="'other' not found"):
        load(tmp_path, config="other")


def test_configuration_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    write(film_reviews(1), tmp_path / "a.csv")
    configs = "".join(f"- config_name: {name}\n  data_files: a.csv\n" for name in ("en", "de"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(InputError, match=r"data.config: .* has several; name one of \['en', 'de'\]"):
        load(tmp_path)


@pytest.mark.parametrize("other", ["labels.json", "feb.jsonl", "feb.csv"])
def test_file_without_the_columns_of_the_others_is_named(other: str, tmp_path: Path) -> None:
    write(film_reviews(1), tmp_path / "jan.csv")
    (tmp_path / other).write_text("review,label\na,b\n" if other == "feb.csv" else '{"review": "a", "label": 1}\n')
    with pytest.raises(InputError, match=f"{other} has no column 'text'; .*; add it, or take the file away"):
        load(tmp_path)


def test_fault_of_a_row_says_in_which_file_it_is(tmp_path: Path) -> None:
    write(film_reviews(1), tmp_path / "jan.csv")
    write(film_reviews(2)[12:].assign(label=["", *"ab" * 5, "a"]), tmp_path / "feb.csv")
    with pytest.raises(
        InputError, match=r"no label \(train row 0\).* train rows 0 to 11 are in feb\.csv, 12 to 23 are in jan\.csv"
    ):
        read(tmp_path)


def test_text_files_without_a_folder_for_each_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a film")
    with pytest.raises(InputError, match=r"must lie in folders named by class, such as pos/1\.txt"):
        load(tmp_path)


def test_saved_data_sets_are_read(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_pandas(film_reviews(2), preserve_index=False)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=saved, dev=saved.select(range(4))).save_to_disk(str(tmp_path / "many"))
    assert load(tmp_path / "one")["train"][:] == saved[:]
    assert {name: len(split) for name, split in load(tmp_path / "many").items()} == {"train": 24, "dev": 4}
