import csv
import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tasks.sources import demo

SPLITS = ("train", "validation", "test")


def read_rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        split: list(csv.DictReader((folder / f"{split}.csv").open(newline="", encoding="utf-8"))) for split in SPLITS
    }


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "reviews"
    demo.write_reviews(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    demo.pretrain_model(folder, steps=3)
    return folder


def test_every_split_has_its_size_and_both_labels_equally_often(reviews: Path) -> None:
    for split, rows in read_rows(reviews).items():
        half = demo.SPLIT_SIZES[split] // 2
        assert Counter(row["label"] for row in rows) == {"negative": half, "positive": half}


def test_no_review_is_in_two_splits_or_twice_in_one(reviews: Path) -> None:
    texts = [row["text"] for rows in read_rows(reviews).values() for row in rows]
    assert len(set(texts)) == len(texts) == sum(demo.SPLIT_SIZES.values())


def test_labels_do_not_follow_the_row_order(reviews: Path) -> None:
    labels = [row["label"] for row in read_rows(reviews)["test"]]
    same = sum(left == right for left, right in itertools.pairwise(labels))
    assert 0.4 < same / len(labels) < 0.6


def test_reviews_read_as_sentences(reviews: Path) -> None:
    for row in read_rows(reviews)["train"]:
        assert re.fullmatch(r"[A-Z][A-Za-z,; ]+\.", row["text"]), row
        assert "  " not in row["text"] and "a a" not in row["text"].split(), row


@pytest.mark.parametrize("phrase", ["not at all", "hardly a", "othing about", ", but ", "lthough ", "even though"])
@pytest.mark.parametrize("label", ["negative", "positive"])
def test_negation_and_contrast_occur_under_both_labels(reviews: Path, phrase: str, label: str) -> None:
    rows = read_rows(reviews)["train"]
    assert sum(phrase in row["text"] and row["label"] == label for row in rows) >= 10


def test_a_single_word_says_little_about_the_label(reviews: Path) -> None:
    rows = read_rows(reviews)["train"]
    seen, positive = Counter[str](), Counter[str]()
    for row in rows:
        words = set(re.findall(r"[a-z]+", row["text"].lower()))
        seen.update(words)
        positive.update(words if row["label"] == "positive" else ())
    shares = {word: positive[word] / count for word, count in seen.items() if count >= 100}
    assert len(shares) > 20
    assert all(0.3 < share < 0.7 for share in shares.values()), shares


def test_the_main_clause_decides_a_contrast() -> None:
    rng = random.Random(0)
    texts = [demo._sentence(rng, 1, negated_share=0, contrast_share=1) for _ in range(200)]
    contrasts = [text.split(", but ") for text in texts if ", but " in text]
    assert len(contrasts) > 20
    negative, positive = ([*demo.ADJECTIVES[m], *demo.NOUNS[m], *demo.VERDICTS[m]] for m in (0, 1))
    for minor, main in contrasts:
        assert any(word in minor for word in negative) and any(word in main for word in positive)


def test_a_negated_clause_says_it_with_a_word_of_the_other_mood() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = demo._sentence(rng, 1, negated_share=1, contrast_share=0)
        assert any(word in text for word in [*demo.ADJECTIVES[0], *demo.NOUNS[0]]), text


def test_the_same_seed_writes_the_same_reviews_and_another_seed_does_not(reviews: Path, tmp_path: Path) -> None:
    demo.write_reviews(tmp_path / "again")
    demo.write_reviews(tmp_path / "other", seed=1)
    assert hashes(tmp_path / "again") == hashes(reviews)
    assert hashes(tmp_path / "other") != hashes(reviews)


def test_no_review_is_in_the_pretraining_corpus(reviews: Path) -> None:
    documents = demo._corpus(seed=0, documents=2000)
    sentences = {sentence for text in documents for sentence in re.split(r"(?<=\.) ", text)}
    texts = {row["text"] for rows in read_rows(reviews).values() for row in rows}
    assert len(sentences) > 2000
    assert not sentences & texts


def test_no_label_word_is_in_the_pretraining_corpus() -> None:
    corpus = " ".join(demo._corpus(seed=0, documents=500)).lower()
    assert "negative" not in corpus and "positive" not in corpus


def test_the_model_loads_with_the_auto_classes_and_has_no_pad_token(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    assert network.config.model_type == "gpt2"
    assert tokenizer.pad_token is None and network.config.pad_token_id is None
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id == network.config.eos_token_id
    assert len(tokenizer) == network.config.vocab_size


def test_the_tokenizer_gives_any_text_back(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in ("The acting isn't dull.", "Größe, 映画 and 🎬"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_seed_pretrains_the_same_model_and_leaves_the_random_state(model: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    demo.pretrain_model(tmp_path / "again", steps=3)
    assert hashes(tmp_path / "again") == hashes(model)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    import torch

    documents = demo._corpus(seed=1, documents=320)
    tokenizer = demo._train_tokenizer(documents)
    network = demo._new_model(tokenizer, seed=0)
    ids = torch.tensor([tokenizer(documents[0])["input_ids"]])
    before = network(input_ids=ids, labels=ids).loss.item()
    demo._fit(network, [tokenizer(text)["input_ids"] for text in documents], batch_size=16)
    assert network(input_ids=ids, labels=ids).loss.item() < before / 2


def test_the_cache_is_made_once_and_named_by_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = demo.demo_reviews()
    version = hashlib.sha256(Path(demo.__file__).read_bytes()).hexdigest()[:12]
    assert folder == tmp_path / "peft-flow" / f"demo-{version}" / "reviews"
    monkeypatch.setattr(demo, "write_reviews", lambda folder: pytest.fail("made twice"))
    assert demo.demo_reviews() == folder


def test_the_model_is_pretrained_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []
    monkeypatch.setattr(demo, "pretrain_model", made.append)
    assert made == [] and [demo.demo_model()] == made and made[0].name == "model"


def test_importing_the_demo_loads_no_heavy_library() -> None:
    code = "import sys, tasks.sources.demo; print({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules))"
    root = Path(demo.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    assert run.stdout.decode().strip() == "set()", run.stderr.decode()
