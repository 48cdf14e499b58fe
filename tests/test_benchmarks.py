"""The benchmark runs, counts what it says it counts, and writes its page; figures come from benchmarks/ itself."""

import io
import json
import re
import sys
import time
from contextlib import chdir, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, page, peers, processes, quantized, speed, sweep
from tasks.settings.loading import load_config, read_yaml
from tasks.settings.space import grid, read_space, values_of
from tests.conftest import ROOT, sentences, write_tokenizer


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


EPOCHS = 2


def check_side(found: dict[str, Any]) -> None:
    """What was counted is what was computed."""
    rows, size = found["rows"], 32 if found["name"] == "peft-example" else 16
    assert found["step_rows"] == EPOCHS * rows["train"] - min(peers.WARM_STEPS * size, rows["train"])
    assert found["eval_rows"] == rows["test"] and len(found["validation_losses"]) == EPOCHS
    assert 0 < found["start_seconds"] < found["seconds"] and found["peak_memory_mb"] > 100
    assert 0 <= found["accuracy"] <= 1 and found["losses"]


def one_round(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Of these sides, on a tiny model and a few sentences; their floor comes first."""
    model = write_long_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "write_rows", write_rows)
        return list(speed.rounds(speed.Part(str(model), ("--layers", "1"), None, None, EPOCHS, names), 1, folder))


@pytest.mark.endurance
def test_every_side_trains_and_evaluates_the_same_rows(tmp_path: Path) -> None:
    names = ["peft-flow", "peft-flow-top", "best-settings", "peft-example"]
    floor, *measured = one_round(tmp_path, *names)
    assert floor["flops"] > 0 and floor["tokens"] > 2 and floor["layer_weights"] > 1000
    assert [found["name"] for found in measured] == names
    for found in measured:
        check_side(found)
    assert {found["laps"] != {} for found in measured if found["name"].startswith("peft-flow")} == {True}


KEPT = json.loads(speed.RESULTS.read_text(encoding="utf-8"))


def test_side_is_measured_as_the_kept_results_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness as it is, but in this process: one script, and peft-flow's run is one that is there already."""

    def here(command: list[str], folder: Path) -> dict[str, Any]:
        out, began = io.StringIO(), time.time()
        if command[1] == "peft-flow":  # it fills caches
            return dict.fromkeys(("began", "ended", "first_step", "done", "printed"), began)
        with redirect_stdout(out), chdir(folder):
            monkeypatch.setattr(sys, "argv", command)
            peers.main()
        return {"began": began, "ended": time.time(), "peak_memory_mb": 200.0, **json.loads(out.getvalue())}

    from transformers import trainer

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS])  # the stopwatch joins them
    monkeypatch.setattr(speed, "alone", here)
    floor, found = one_round(tmp_path, "peft-example")
    assert floor["flops"] > 0 and floor["tokens"] > 2 and floor["layer_weights"] > 1000
    check_side(found)
    kept = {side["name"]: side for side in KEPT["minilm"]["measured"]}
    assert set(floor) == set(kept["floor"]) and set(found) == set(kept["peft-example"])


def test_page_has_a_row_for_each_side_and_its_ratio(tmp_path: Path) -> None:
    page.write_page(KEPT, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("peft-flow-top", "best-settings", "peft-example"):
        assert f"| {page.TITLES[name]} | " in text
    assert text == (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert text.count("×** (") >= 8 and re.search(r"\*\*[+-]\d+\.\d%\*\*", text)
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


def test_sweep_and_its_rivals_try_the_same_values(tmp_path: Path) -> None:
    """And they begin with the configuration as given, which is one of them: no trial more than the others have."""
    place = sweep.Place(tmp_path, write_rows(tmp_path / "rows"))
    place.write()
    config, space = load_config(tmp_path / "job.yaml"), read_yaml(tmp_path / "space.yaml")
    tried = [
        {field.rpartition(".")[2]: value for field, value in values.items()}
        for values in grid(read_space(space, config), values_of(config))
    ]
    given = {"learning_rate": config.training.learning_rate, "r": config.adapter.r, "seed": config.seed}
    assert [given, *(values for values in tried if values != given)] == sweep.VALUES and len(tried) == 24


def test_memory_is_measured_with_one_training(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import trainer

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS])
    config = small_config({"training": {"max_steps": 3}})
    job = memory.job_of(memory.Case(config.model.name, 32, 8, 3, False), Path(config.data.name))
    with chdir(tmp_path):
        found = memory.measure(job)
        assert (tmp_path / "work/adapter").is_dir()
    assert found["loaded_mb"] > 100 and found["rows_per_second"] > 0 and found["rows_per_cpu_second"] > 0


def test_memory_is_compared_by_medians() -> None:
    def one(side: str, value: float) -> dict[str, Any]:
        return {"side": side, **dict.fromkeys(memory.SHOWN, value)}

    found = [one("new", 1), one("new", 90), one("new", 2), one("old", 4), one("old", 4)]
    said = memory.summary("minilm-512", found)
    assert said.startswith("minilm-512: peak 4.00 to 2.00 (0.50), training 4.00 to 2.00 (0.50), rows/s ")


def test_two_processes_have_the_bits_of_their_halves(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    processes.write(tmp_path, 70, small)
    two, halves = (processes.train(tmp_path, side, tmp_path / side) for side in ("two", "halves"))
    assert two["sha256"] == halves["sha256"] and 0 < two["seconds"] < two["whole"]


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="peft-flow[quantized] is not installed")
def test_sides_of_quantized_read_their_adapter_back(foundation: Any, tmp_path: Path) -> None:
    weights = {}
    for kind in quantized.KINDS:
        (tmp_path / kind).mkdir()
        side = quantized.train_side(foundation("llama"), kind, tmp_path / kind)
        assert quantized.read_side(tmp_path / kind) == {"read_back_difference": 0}
        weights[kind] = side["weights_mb"]
        assert side["embeddings_mb"] == 200 * 32 * (4 if kind == "none" else 2) / 2**20 and side["forward_seconds"] > 0
    assert weights["nf4"] < weights["int8"] < weights["none"]
