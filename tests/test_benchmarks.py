"""The benchmark runs, counts what it says it counts, and writes its page; figures come from benchmarks/ itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page, peers, speed
from tests.conftest import sentences, write_tokenizer

MACHINE = {"device": "a CPU", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "today"}


def write_long_model(folder: Path) -> Path:
    """A tiny encoder that reads 128 tokens, as the benchmark asks it to."""
    import transformers

    write_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 64', '"model_max_length": 128'))
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=200, max_position_embeddings=128, pad_token_id=1, **size)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_rows(folder: Path, *_: Any) -> Path:
    """As speed.write_rows, from a few sentences."""
    import pandas as pd

    folder.mkdir()
    texts, labels = sentences(6)
    frame = pd.DataFrame({"text": texts, "label": labels})
    for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One round of four sides, on a tiny model and a few sentences."""
    folder = tmp_path_factory.mktemp("speed")
    model = write_long_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "write_rows", write_rows)
        names = ("peft-flow", "peft-flow-top", "best-settings", "peft-example")
        tiny = speed.Part(str(model), ("--layers", "1"), None, None, 2, names)
        return {"machine": MACHINE, "measured": list(speed.rounds(tiny, 1, folder))}


def test_every_side_trains_and_evaluates_the_same_rows(part: dict[str, Any]) -> None:
    floor, *measured = part["measured"]
    assert floor["flops"] > 0 and floor["tokens"] > 2 and floor["layer_weights"] > 1000
    assert [found["name"] for found in measured] == ["peft-flow", "peft-flow-top", "best-settings", "peft-example"]
    for found in measured:
        rows, size = found["rows"], 32 if found["name"] == "peft-example" else 16
        assert found["step_rows"] == 2 * rows["train"] - min(peers.WARM_STEPS * size, rows["train"])
        assert found["eval_rows"] == rows["test"] and len(found["validation_losses"]) == 2
        assert 0 < found["start_seconds"] < found["seconds"] and found["peak_memory_mb"] > 100
        assert 0 <= found["accuracy"] <= 1 and found["losses"]
    assert {found["laps"] != {} for found in measured if found["name"].startswith("peft-flow")} == {True}


def test_page_has_a_row_for_each_side_and_its_ratio(part: dict[str, Any], tmp_path: Path) -> None:
    growth = [
        {"name": name, "size": n, "seconds": n / 10, "peak_memory_mb": 9} for name in page.GROWING for n in (1, 9)
    ]
    bare = dict(part["measured"][1], name="peft-flow-bare")
    job = {"machine": MACHINE, "measured": [*part["measured"][1:3], bare]}
    results = {"minilm": part, "job": job, "growth": {"machine": MACHINE, "measured": growth}}
    page.write_page(json.loads(json.dumps(results)), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("peft-flow-top", "best-settings", "peft-example"):
        assert f"| {page.TITLES[name]} | " in text
    assert text.count("×** (") >= 8 and "**+0.0%**" in text
    for picture in ("losses", "growth"):
        assert f"benchmark-{picture}.png" in text and (tmp_path / f"benchmark-{picture}.png").stat().st_size > 10_000


def measurement(**changes: Any) -> dict[str, Any]:
    given = {
        "step_rows": 100,
        "step_seconds": 10.0,
        "eval_rows": 50,
        "eval_seconds": 1.0,
        "rows": {"train": 100, "validation": 50, "test": 50},
        "epochs": 1,
        "seconds": 20.0,
        "trunk_seconds": float("nan"),
        "laps": {},
    }
    return given | changes


def test_whole_job_is_what_stays_and_what_grows_with_the_rows() -> None:
    stays = 20.0 - 100 / 10 - 150 / 50
    grows = page.EPOCHS * page.TRAIN_ROWS / 10 + 5 * page.EVAL_ROWS / 50
    assert page.whole_job(measurement()) == pytest.approx(stays + grows)
    probe = 3.0 * (page.PROBE_ROWS + page.EVAL_ROWS) / 150 - 3.0
    assert page.whole_job(measurement(laps={"references": 3.0})) == pytest.approx(stays + grows + probe)
    once = page.whole_job(measurement(trunk_seconds=3.0, seconds=23.0))
    assert once == pytest.approx(stays + grows + 3.0 * (page.TRAIN_ROWS + page.EVAL_ROWS) / 150)


def test_lower_layers_computed_once_count_as_training() -> None:
    assert page.train_rate(measurement()) == 10
    assert page.train_rate(measurement(trunk_seconds=30.0)) == pytest.approx(300 / 60)


def test_scripts_that_pad_get_fewer_rows() -> None:
    assert [speed.fewer(name) for name in ("notebook", "transformers-example", "peft-example", "peft-flow")] == [
        *(16, 4, 1, 1)
    ]
