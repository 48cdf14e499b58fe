"""Texts to tokens, whole and cut, of one column and of two; and none of them twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tasks.base.records import PreparedData, Source
from tasks.data import tokens
from tasks.data.datacheck import read_check
from tasks.data.prepare import prepare
from tasks.models import foundation as model
from tasks.models import serving
from tasks.settings.config import RunConfig
from tasks.settings.loading import validated
from tests.conftest import SHARED, sentences
from tests.test_data_splits import film_reviews, read, write

Configure = Callable[..., RunConfig]


@pytest.mark.parametrize("columns", [("first",), ("first", "second")], ids=["one-text", "pair"])
@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "no fast tokenizer"])
def test_full_length_is_that_without_truncation(
    family: str, columns: tuple[str, ...], foundation: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    slow = family.startswith("no")
    tokenizer = ByT5Tokenizer() if slow else AutoTokenizer.from_pretrained(foundation(family))
    assert tokenizer.is_fast is not slow
    texts = [" ".join(["a warm and funny film"] * (n % 9 + 1)) + f" {n}" for n in range(40)]
    frame = pd.DataFrame({"first": texts, "second": texts, "label": [0, 1] * 20})
    path = write(frame, tmp_path / "long.parquet")
    config = validated({"data": {"name": str(path), "text_columns": columns, "max_length": 24}}).data
    train = tokens.tokenize(read(path, text_columns=columns).datasets, tokenizer, config, tmp_path)["train"]
    texts = model.model_texts([list(train[column]) for column in columns], tokenizer)
    whole = [len(ids) for ids in tokenizer(*texts)["input_ids"]]
    assert list(train["full_length"]) == whole
    assert list(train["length"]) == [min(length, 24) for length in whole]
    assert min(whole) <= 24 < max(whole) or slow


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Every two pairs differ only in where the first text ends."""
    stems = [" ".join("a" * count) for count in range(1, 31)]
    rows = [row for stem in stems for row in ((f"{stem} film", "noir", "x"), (stem, "film noir", "y"))]
    return write(pd.DataFrame(rows, columns=["first", "second", "label"]), tmp_path / "pairs.csv")


def tokenized(path: Path, tokenizer: Any, scratch: Path) -> pd.DataFrame:
    config = validated({"data": {"name": str(path), "text_columns": ["first", "second"]}}).data
    splits = read(path, text_columns=["first", "second"]).datasets
    return tokens.tokenize(splits, tokenizer, config, scratch)["train"].to_pandas()


def test_encoder_reads_a_pair_as_two_texts(pairs: Path, foundation: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(foundation("bert"))
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    rows = tokenized(pairs, tokenizer, tmp_path)
    for first, second, ids in zip(rows["first"], rows["second"], rows["input_ids"], strict=True):
        assert list(ids) == tokenizer(first, second)["input_ids"]
        assert tokenizer.decode(ids).replace(" ", "") == f"[CLS]{first}[SEP]{second}[SEP]".replace(" ", "")


@pytest.mark.hub
def test_model_without_separator_reads_a_pair_as_two_lines(pairs: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    gpt2 = PreTrainedTokenizerFast(tokenizer_file=str(SHARED / "data/gpt2-tokenizer/tokenizer.json"))
    rows = tokenized(pairs, gpt2, tmp_path)
    assert {"a film\nnoir", "a\nfilm noir"} <= {gpt2.decode(ids) for ids in rows["input_ids"]}
    for first, second, ids in zip(rows["first"], rows["second"], rows["input_ids"], strict=True):
        assert gpt2.decode(ids) == f"{first}\n{second}"


# special tokens in texts

SPELLED = {
    "gpt2": "<|endoftext|>",
    "bert": "[SEP]",
    "roberta": "[MASK]",
    "bart": "</s>",
    "t5": "</s>",
    "no fast tokenizer": "</s>",
}


def ids_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    config = validated({"data": {"max_length": 64}}).data
    encoded = tokens.encode_texts([texts], tokenizer, config)
    assert encoded["full_length"] == encoded["length"]
    assert serving.tokenize([texts], tokenizer, 64)["input_ids"] == encoded["input_ids"], "served as in training"
    return [list(ids) for ids in encoded["input_ids"]]


@pytest.mark.parametrize("family", SPELLED)
def test_special_token_in_a_text_is_text(family: str, foundation: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    token = SPELLED[family]
    if family.startswith("no"):
        tokenizer = serving.read_as_text(ByT5Tokenizer())
    else:
        source = Source(name=str(foundation(family)), revision="", is_local=True, local_files_only=True)
        tokenizer = model.load_tokenizer(source, validated({}).model)
        tokenizer.save_pretrained(tmp_path)
        saved = AutoTokenizer.from_pretrained(tmp_path)
        assert serving.tokenize([[token]], saved, 64)["input_ids"] == ids_of([token], tokenizer), "read back, too"
    special, plain = tokenizer.convert_tokens_to_ids(token), "a warm and funny film"
    texts = [plain, token, f"{token}{token} film", f"a{token}b", f"a film {token}", "＜/s＞ film"]
    first, *others = ids_of(texts, tokenizer)
    assert first == tokenizer(plain, split_special_tokens=False)["input_ids"], "other texts are what they were"
    added = first.count(special)  # by the template
    assert [ids.count(special) for ids in others] == [added] * len(others)
    assert all(len(ids) > tokenizer.num_special_tokens_to_add() for ids in others), "nor is it left out"


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_text_with_an_end_token_is_trained_on_and_served(
    family: str, foundation: Any, small_config: Any, tmp_path: Path
) -> None:
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    frame = pd.DataFrame({"text": sentences(4)[0], "label": sentences(4)[1]})
    frame["text"] += [" </s>" if row % 3 else " <pad> </s></s> film" for row in frame.index]
    path = write(frame, tmp_path / "rows.csv")
    config = small_config({"data": {"name": str(path)}, "training": {"max_steps": 2}}, family=family)
    trained = fit_adapter(config, prepare(config, tmp_path), tmp_path / "run", Watcher(lambda progress: None))
    folder = Path(trained.folder)
    served = serving.predict(*serving.load_adapter(folder), serving.read_settings(folder), frame)
    assert np.isfinite(served["probability"]).all()


# texts that were tokenized before


@pytest.fixture
def tokenized_texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Every text, or pair of texts, that reaches the tokenizer from now on."""
    seen: list[tuple[str, ...]] = []
    real = tokens.encode_texts

    def counted(columns: Any, *others: Any) -> dict[str, list[Any]]:
        seen.extend(zip(*columns, strict=True))
        return real(columns, *others)

    monkeypatch.setattr(tokens, "encode_texts", counted)
    return seen


def same_content(first: PreparedData, second: PreparedData) -> bool:
    """Whether both hold the same rows and tokens, in the same columns of the same types."""
    one, other = datasets.load_from_disk(first.folder), datasets.load_from_disk(second.folder)
    assert first.fingerprint == second.fingerprint and first.test_fingerprint == second.test_fingerprint
    assert {name: split.features.arrow_schema for name, split in one.items()} == {
        name: split.features.arrow_schema for name, split in other.items()
    }
    return {name: split[:] for name, split in one.items()} == {name: split[:] for name, split in other.items()}


@pytest.mark.parametrize("columns", [("text",), ("text", "more")], ids=["one-text", "pair"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_of_grown_data_only_the_new_texts_reach_the_tokenizer(
    family: str, columns: tuple[str, ...], configure: Configure, tokenized_texts: list[Any], tmp_path: Path
) -> None:
    frame = film_reviews(20)
    frame = frame.assign(more=frame["text"][::-1].array, region=["north", "south", "east"] * 80)
    write(frame[:120], tmp_path / "data/b.csv")
    config = configure(tmp_path / "data", family, text_columns=columns, max_length=9)
    prepare(config, tmp_path / "work")
    assert len(tokenized_texts) == 120
    tokenized_texts.clear()
    write(frame[120:132], tmp_path / "data/a.csv")  # all other rows move on, and other ones are cut
    grown = prepare(config, tmp_path / "work")
    assert sorted(tokenized_texts) == sorted(frame[120:132][list(columns)].itertuples(index=False, name=None))
    scratch = prepare(config, tmp_path / "other")
    assert same_content(grown, scratch)
    assert read_check(config, grown) == read_check(config, scratch)


def test_texts_are_taken_over_from_a_fuller_preparation_than_the_last(
    configure: Configure, tokenized_texts: list[Any], tmp_path: Path
) -> None:
    path = write(film_reviews(20), tmp_path / "reviews.csv")
    prepare(configure(path), tmp_path / "work")
    prepare(configure(path, max_train_rows=12, max_test_rows=4), tmp_path / "work")
    tokenized_texts.clear()
    prepare(configure(path, split_seed=1), tmp_path / "work")
    assert tokenized_texts == []


@pytest.mark.parametrize("changes", [{"max_length": 16}, {"family": "bert"}, {"text_columns": ("more",)}], ids=str)
def test_what_makes_other_tokens_takes_nothing_over(
    changes: dict[str, Any], configure: Configure, tokenized_texts: list[Any], tmp_path: Path
) -> None:
    frame = film_reviews()
    path = write(frame.assign(more=frame["text"]), tmp_path / "reviews.csv")
    prepare(configure(path), tmp_path / "work")
    tokenized_texts.clear()
    prepare(configure(path, **changes), tmp_path / "work")
    assert len(tokenized_texts) == 72


def test_texts_with_the_same_hash_are_distinguished(
    configure: Configure, tokenized_texts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "hashes", lambda columns: np.zeros(len(columns[0]), np.uint64))
    path = write(film_reviews(), tmp_path / "reviews.csv")
    prepare(configure(path), tmp_path / "work")
    tokenized_texts.clear()
    again = prepare(configure(path, split_seed=1), tmp_path / "work")
    assert len(tokenized_texts) == 71  # the first one is found
    assert same_content(again, prepare(configure(path, split_seed=1), tmp_path / "other"))


def test_damaged_preparation_is_passed_over(configure: Configure, tokenized_texts: list[Any], tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    first = prepare(configure(path), tmp_path / "work")
    for file in Path(first.folder).glob("train/*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    tokenized_texts.clear()
    again = prepare(configure(path, split_seed=1), tmp_path / "work")
    assert len(tokenized_texts) == 72
    assert same_content(again, prepare(configure(path, split_seed=1), tmp_path / "other"))
