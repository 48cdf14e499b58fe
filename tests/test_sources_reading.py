"""The same rows from every format and folder, and files that only seem to belong together."""

import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest

from tasks.settings.fields import InputError
from tests.conftest import ROOT, sentences
from tests.test_data_splits import FORMATS, SPLITS, film_reviews, fingerprint_of, read, write


@pytest.fixture(scope="module")
def same_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same reviews as a file and as a folder of three files, in every format."""
    root, frame = tmp_path_factory.mktemp("formats"), film_reviews()
    paths = {f"{kind} file": write(frame, root / f"reviews.{kind}") for kind in FORMATS}
    for kind in FORMATS:
        for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
            write(part, root / kind / f"{name}.{kind}")
        paths[f"{kind} folder"] = root / kind
    return paths


@pytest.mark.parametrize("shape", ["file", "folder"])
def test_every_format_gives_the_same_rows_and_fingerprint(shape: str, same_rows: dict[str, Path]) -> None:
    paths = [same_rows[f"{kind} {shape}"] for kind in FORMATS]
    expected = film_reviews().sort_values("text")
    for path in paths:
        splits = read(path)
        frame = pd.concat([split.to_pandas() for split in splits.datasets.values()]).sort_values("text")
        assert list(frame["text"]) == list(expected["text"])
        assert [splits.label_names[label] for label in frame["label"]] == list(expected["label"])
    assert len({fingerprint_of(path) for path in paths}) == 1


def test_folder_keeps_its_own_splits(same_rows: dict[str, Path]) -> None:
    splits = read(same_rows["csv folder"])
    assert {name: len(split) for name, split in splits.datasets.items()} == {"train": 48, "validation": 12, "test": 12}
    assert splits.notes == ("train: train.csv; validation: validation.csv; test: test.csv",)


def test_words_that_pandas_takes_for_missing_are_texts(tmp_path: Path) -> None:
    frame = film_reviews()
    frame.loc[:3, "text"] = ["NA", "null", "None", "nan"]
    from_csv, from_parquet = (read(write(frame, tmp_path / f"reviews.{kind}")) for kind in ("csv", "parquet"))
    for name in SPLITS:
        assert list(from_csv.datasets[name]["text"]) == list(from_parquet.datasets[name]["text"])


def test_unused_split_is_noted(tmp_path: Path) -> None:
    for place, name in enumerate((*SPLITS, "extra")):
        write(film_reviews(8)[24 * place :][:24], tmp_path / f"{name}/{name}.csv")
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    readme += "".join(f"  - split: {name}\n    path: {name}/*\n" for name in (*SPLITS, "extra"))
    (tmp_path / "README.md").write_text(readme + "---\n")
    assert read(tmp_path).notes[1:] == ("not used: the split extra",)
    assert "not used: the split test" in read(tmp_path, test_split="extra").notes


def write_parquet(path: Path, feature: object, labels: list[object], start: int) -> None:
    """Twelve reviews from number `start` on, with this label feature."""
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    texts = sentences(8)[0][start : start + 12]
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(str(path))


def test_library_takes_the_first_files_class_names_for_all(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", datasets.ClassLabel(names=["neg", "pos"]), [0, 1] * 6, 0)
    write_parquet(tmp_path / "test.parquet", datasets.ClassLabel(names=["pos", "neg"]), [0, 1] * 6, 12)
    loaded = datasets.load_dataset(str(tmp_path))
    # why we look for ourselves: 0 means "pos" in the test file
    assert loaded["test"].features["label"].names[loaded["test"]["label"][0]] == "neg"


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        (datasets.ClassLabel(names=["pos", "neg"]), "test.parquet stand for pos, neg, but .* stand for neg, pos"),
        (datasets.ClassLabel(names=["neg", "pos", "so-so"]), "neg, pos, so-so, but .* neg, pos"),
    ],
)
def test_files_whose_label_numbers_mean_different_classes_are_refused(
    feature: datasets.ClassLabel, says: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "train.parquet", datasets.ClassLabel(names=["neg", "pos"]), [0, 1] * 6, 0)
    write_parquet(tmp_path / "test.parquet", feature, [0, 1] * 6, 12)
    with pytest.raises(InputError, match=says) as refusal:
        read(tmp_path)
    assert str(refusal.value).startswith("data.label_column: ")


def test_class_names_in_one_file_alone_are_refused_where_they_would_be_lost(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", datasets.Value("string"), ["0", "1"] * 6, 0)
    write_parquet(tmp_path / "test.parquet", datasets.ClassLabel(names=["1", "0"]), [0, 1] * 6, 12)
    with pytest.raises(InputError, match="stand for 1, 0, but those of the first file have no names"):
        read(tmp_path)


def test_words_in_one_file_find_the_class_names_of_another(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", datasets.ClassLabel(names=["pos", "neg"]), [0, 1] * 6, 0)
    write_parquet(tmp_path / "test.parquet", datasets.Value("string"), ["neg", "pos"] * 6, 12)
    splits = read(tmp_path)
    assert splits.label_names == ("pos", "neg")
    assert list(splits.datasets["test"]["label"]) == [1, 0] * 6


def test_class_names_of_a_split_that_is_not_used_do_not_matter(tmp_path: Path) -> None:
    for place, name in enumerate(SPLITS):
        write_parquet(tmp_path / f"{name}.parquet", datasets.ClassLabel(names=["neg", "pos"]), [0, 1] * 6, 12 * place)
    write_parquet(tmp_path / "extra.parquet", datasets.ClassLabel(names=["a", "b"]), [0, 1] * 6, 36)
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    readme += "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in (*SPLITS, "extra"))
    (tmp_path / "README.md").write_text(readme + "---\n")
    assert read(tmp_path).notes[1:] == ("not used: the split extra",)


@pytest.mark.parametrize(
    ("name", "says"), [("nope.csv", "no file or folder"), ("a.csv", "perhaps --data.text_columns review")]
)
def test_wrong_path_or_column_is_refused_before_anything_heavy_is_imported(
    name: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("review,stars\na film to see,1\ndull,2\n")
    code = (
        "import sys\nfrom flows.cli import main\n"
        f"code = main(['finetune', '--data.name', {str(tmp_path / name)!r}])\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'mlflow', 'prefect'} & set(sys.modules)\n"
        "print(code, *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "2" and says in done.stderr


def test_value_that_is_no_text_is_named_by_its_row(tmp_path: Path) -> None:
    write(film_reviews(1).astype(object).replace({"text": {film_reviews(1)["text"][3]: 5}}), tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="column 'text' in train holds 5 in row 3, not text"):
        read(tmp_path / "a.jsonl")
