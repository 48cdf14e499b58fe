"""What a model knows before training: likelihoods of words, against the same computed by hand; who is left out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.base.records import PreparedData
from tasks.data.prepare import prepare
from tasks.evaluation import references, zero_shot
from tasks.evaluation.cautions import learned, only_chance
from tasks.evaluation.references import evaluate, evaluate_references, measurement_key
from tasks.evaluation.report import comparison_page
from tasks.evaluation.wording import description, step_sentence
from tasks.evaluation.zero_shot import (
    CONTENT_FREE,
    MOST_PASSES,
    Question,
    ZeroShotLeftOut,
    ask_zero_shot,
    check_reads_forward,
    decoder_passes,
    likelihoods,
    load_language_model,
    make_form,
    prompts,
    question,
    question_note,
    readable,
)
from tasks.models import foundation as models
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.settings.sections import EvaluationConfig
from tasks.sources.demo import LABELS
from tests.conftest import Judged, made_up_classifier
from tests.test_evaluation_references import in_flow, other, write_splits

TEMPLATE = "{text} it is {label} from end"


def asking(small_config: Any, family: str, words: dict[str, str], **evaluation: Any) -> RunConfig:
    values = {"references": ["zero_shot"], "zero_shot_template": TEMPLATE, "zero_shot_words": words, **evaluation}
    config: RunConfig = small_config({"evaluation": values}, family=family)
    return config


def texts_of_test(data: PreparedData) -> list[str]:
    from datasets import load_from_disk

    texts: list[str] = load_from_disk(data.folder)["test"]["text"][:]
    return texts


# --- against likelihoods by hand --------------------------------------------------------------------------------------


def by_decoder(model: Any, tokenizer: Any, text: str, word: str) -> float:
    """One sequence, read whole."""
    prompt = tokenizer(f"{text} it is", add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{text} it is {word}", add_special_tokens=False)["input_ids"]
    said = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(said[place - 1, ids[place]] for place in range(len(prompt), len(ids))))


def by_masks(model: Any, tokenizer: Any, text: str, word: str) -> float:
    """As many masks as the word has tokens, each filled in by itself."""
    tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{text} it is {word} from end")["input_ids"]
    first = len(ids) - len(tokenizer(" from end", add_special_tokens=False)["input_ids"]) - 1 - len(tokens)
    assert ids[first : first + len(tokens)] == tokens
    places = range(first, first + len(tokens))
    ids = [tokenizer.mask_token_id if place in places else token for place, token in enumerate(ids)]
    said = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(said[place, token] for place, token in zip(places, tokens, strict=True)))


BY_HAND = {"gpt2": by_decoder, "llama": by_decoder, "bert": by_masks, "roberta": by_masks, "distilbert": by_masks}


@pytest.mark.parametrize("words", [("film", "story"), ("stupid thriller", "story"), ("wooden acting", "great comedy")])
@pytest.mark.parametrize("family", BY_HAND)
def test_probabilities_are_those_of_likelihoods_computed_by_hand(
    family: str, words: tuple[str, str], small_config: Any, tmp_path: Path
) -> None:
    config = asking(small_config, family, dict(zip(("bad", "good"), words, strict=True)))
    data = prepare(config, tmp_path)
    model, tokenizer, masked = load_language_model(data.model, config)
    assert masked == (BY_HAND[family] is by_masks)

    def table(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return np.array([[BY_HAND[family](model, tokenizer, text, word) for word in words] for text in texts])

    def shares(likelihood: np.ndarray) -> np.ndarray:
        powers = np.exp(likelihood)
        result: np.ndarray = powers / powers.sum(1, keepdims=True)
        return result

    said = table(texts_of_test(data))
    expected = shares(said - np.log(shares(table(CONTENT_FREE)).mean(0)))
    assert ask_zero_shot(config, data) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - shares(said)).max() > 1e-3, "the prior matters here"


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_text_without_content_speaks_for_no_class(
    family: str, small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asking(small_config, family, {"bad": "film", "good": "stupid acting"})
    data = prepare(config, tmp_path)
    monkeypatch.setattr(zero_shot, "CONTENT_FREE", ("dull film",))
    monkeypatch.setattr(zero_shot, "prompts", lambda tokenizer, form, texts: prompts(tokenizer, form, ["dull film"]))
    assert ask_zero_shot(config, data)[:1] == pytest.approx(np.array([[0.5, 0.5]]), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_row_gets_alone_what_it_gets_among_others(family: str, small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, family, {"bad": "film", "good": "stupid acting"})
    data = prepare(config, tmp_path)
    model, tokenizer, masked = load_language_model(data.model, config)
    form = make_form(tokenizer, question(config, data.label_names), masked, 32, models.positions(model))
    texts = ["dull", *texts_of_test(data), "a warm and funny film " * 5]
    together = likelihoods(model, tokenizer, form, texts, 8)
    alone = torch.cat([likelihoods(model, tokenizer, form, [text], 8) for text in texts])
    assert (together - alone).abs().max() < 1e-5


def test_the_head_is_asked_only_where_it_is_read(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "bert", {})
    data = prepare(config, tmp_path)
    model, tokenizer, _ = load_language_model(data.model, config)
    inputs, places = tokenizer(["dull film", "a story"], padding=True, return_tensors="pt"), torch.tensor([[1], [2]])
    with torch.inference_mode():
        whole, chosen = model(**inputs).logits, zero_shot.logits_at(model, inputs, places)
    assert chosen.shape == (2, 1, 200) and torch.allclose(chosen[:, 0], whole[[0, 1], [1, 2]], atol=1e-6)
    assert torch.equal(model(**inputs).logits, whole), "and is as before afterwards"


def test_words_that_begin_alike_share_a_pass() -> None:
    passes = decoder_passes([[1], [1, 2, 3], [4, 5], [1, 2]])
    assert [(one.behind, sorted(one.words)) for one in passes] == [([1, 2], [0, 1, 3]), ([4], [2])]


# --- the question -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_long_texts_lose_their_end_and_the_template_stays(
    family: str, max_length: int, small_config: Any, tmp_path: Path
) -> None:
    config = asking(small_config, family, {"bad": "film", "good": "stupid acting"})
    model, tokenizer, masked = load_language_model(prepare(config, tmp_path).model, config)
    form = make_form(tokenizer, question(config, ("bad", "good")), masked, max_length, models.positions(model))
    text = "moving from start to the end " * 30
    (long,), (short,) = prompts(tokenizer, form, [text]), prompts(tokenizer, form, ["moving"])
    tail = tokenizer("it is", add_special_tokens=False)["input_ids"]
    assert long[-len(tail) :] == tail == short[-len(tail) :]
    most, longest = models.positions(model), max(len(one.behind) for one in form.passes)
    kept = long[len(form.start) : -len(tail)]
    assert kept == tokenizer(text, add_special_tokens=False)["input_ids"][: len(kept)]
    assert len(kept) == 8 if max_length == 8 else len(long) + longest == min(most, 64)
    assert likelihoods(model, tokenizer, form, [text], 8).isfinite().all()


def test_a_template_longer_than_the_model_is_left_out(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "gpt2", {}, zero_shot_template="{text} " + "moving from start " * 40 + "{label}")
    with pytest.raises(ZeroShotLeftOut, match="leaves no room for the text"):
        ask_zero_shot(config, prepare(config, tmp_path))


def test_what_stands_before_the_text_is_asked_too(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "gpt2", {}, zero_shot_template="the best film {text} it is {label}")
    _, tokenizer, _ = load_language_model(prepare(config, tmp_path).model, config)
    form = make_form(tokenizer, question(config, ("bad", "good")), False, 4, 64)
    (prompt,) = prompts(tokenizer, form, ["moving story from start to end"])
    expected = "the best film moving story from start it is"
    assert prompt == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_a_pair_of_texts_is_joined(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "gpt2", {"bad": "film", "good": "story"})
    one = prepare(config, tmp_path)
    frames = [pd.read_csv(Path(config.data.name) / f"{name}.csv") for name in ("train", "test")]
    for frame in frames:
        frame["first"], frame["second"] = frame["text"].str[:9], frame["text"].str[9:]
        frame["text"] = frame["first"] + "\n" + frame["second"]
    columns = {"name": write_splits(tmp_path / "pairs", *frames)}
    joined = prepare(other(config, data=columns), tmp_path)
    pair = other(config, data={**columns, "text_columns": ["first", "second"]})
    here, there = ask_zero_shot(pair, prepare(pair, tmp_path)), ask_zero_shot(other(config, data=columns), joined)
    assert here == pytest.approx(there, abs=1e-6) and not np.allclose(here, ask_zero_shot(config, one))


@pytest.mark.parametrize(
    ("name", "word"),
    [("card_arrival", "card arrival"), ("topUpFailed", "top Up Failed"), ("Sci/Tech", "Sci/Tech"), ("good", "good"),
     ("3", ""), ("-1.5", ""), ("LABEL_3", ""), ("class 2", ""), ("4 stars", "4 stars"), ("良い", "良い")],
)  # fmt: skip
def test_class_names_are_read_as_words_and_numbers_are_none(name: str, word: str) -> None:
    assert readable(name) == word


def test_a_class_without_a_word_is_left_out_until_it_is_given_one() -> None:
    with pytest.raises(ZeroShotLeftOut, match="class '1' has no word; give one in"):
        question(RunConfig(), ("negative", "1"))
    words = {"evaluation": {"zero_shot_words": {"1": "great"}}}
    assert question(validated(words), ("negative", "1")).words == ("negative", "great")


def test_the_class_names_are_asked_for_of_the_demo_as_of_any_data() -> None:
    assert question(RunConfig(), LABELS) == Question("{text} Category: {label}.", ("negative", "positive"))
    other_template = validated({"evaluation": {"zero_shot_template": TEMPLATE}})
    assert question(other_template, ("bad", "good")) == Question(TEMPLATE, ("bad", "good"))


@pytest.mark.parametrize(
    "template", ["", "{text}", "{label}", "{label} is {text}", "{text}{label}", "{text} {label}",
                 "{text} or {text} is {label}", "{text} is {label} or {label}", "{label} {text} is {label}"]
)  # fmt: skip
def test_a_template_that_asks_nothing_is_refused_before_training(template: str) -> None:
    with pytest.raises(InputError, match=r"evaluation\.zero_shot_template: must hold \{text\} and then \{label\}"):
        validated({"evaluation": {"zero_shot_template": template}})


@pytest.mark.parametrize("words", [{"a": "same", "b": "same "}, {"a": "  "}])
def test_words_that_tell_classes_not_apart_are_refused_before_training(words: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"evaluation\.zero_shot_words: class 'a' must have a word of its own"):
        validated({"evaluation": {"zero_shot_words": words}})


# --- who is left out --------------------------------------------------------------------------------------------------


def left_out(config: RunConfig, folder: Path) -> str:
    with pytest.raises(ZeroShotLeftOut) as error:
        ask_zero_shot(config, prepare(config, folder))
    return str(error.value)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_with_a_decoder_is_left_out(family: str, small_config: Any, tmp_path: Path) -> None:
    assert "is neither a decoder nor a masked language model" in left_out(asking(small_config, family, {}), tmp_path)


@pytest.mark.parametrize(("family", "lost"), [("bert", "BertModel"), ("llama", "LlamaModel")])
def test_a_checkpoint_without_a_language_head_is_left_out(
    family: str, lost: str, foundation: Any, small_config: Any, tmp_path: Path
) -> None:
    import shutil

    import transformers

    shutil.copytree(foundation(family), tmp_path / "body")
    getattr(transformers, lost).from_pretrained(foundation(family)).save_pretrained(tmp_path / "body")
    config = other(asking(small_config, family, {}), model={"name": str(tmp_path / "body")})
    assert "has no language head: its files lack" in left_out(config, tmp_path)


def test_a_masked_model_whose_tokenizer_has_no_mask_is_left_out(
    foundation: Any, small_config: Any, tmp_path: Path
) -> None:
    import shutil

    from tests.conftest import write_tokenizer

    shutil.copytree(foundation("bert"), tmp_path / "maskless")
    write_tokenizer(tmp_path / "maskless", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    config = other(asking(small_config, "bert", {}), model={"name": str(tmp_path / "maskless")})
    assert "has no mask" in left_out(config, tmp_path)


def test_a_model_that_sees_the_answer_is_left_out(small_config: Any, tmp_path: Path) -> None:
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = asking(small_config, "gpt2", {})
    model, tokenizer, _ = load_language_model(prepare(config, tmp_path).model, config)
    form = make_form(tokenizer, question(config, ("bad", "good")), False, 32, 64)
    check_reads_forward(model, form)
    torch.manual_seed(0)
    values = {"vocab_size": 200, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.5}
    with pytest.raises(ZeroShotLeftOut, match="does not read from left to right"):
        check_reads_forward(XLNetLMHeadModel(XLNetConfig(**values)).eval(), form)


def test_a_template_that_grows_together_with_the_classes_is_left_out(small_config: Any, tmp_path: Path) -> None:
    """A decoder would have to say what comes after nothing."""
    config = asking(small_config, "gpt2", {"bad": "m", "good": "ms"}, zero_shot_template="{text}fil{label}")
    assert "put a space before {label}" in left_out(config, tmp_path)


def test_words_that_the_tokenizer_reads_as_one_are_left_out(small_config: Any, tmp_path: Path) -> None:
    words = {"bad": "\N{SNOWMAN}", "good": "\N{COMET}"}
    assert "reads two classes as one word" in left_out(asking(small_config, "gpt2", words), tmp_path)


def test_a_decoder_with_many_long_words_is_left_out_as_too_slow(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "gpt2", {})
    _, tokenizer, _ = load_language_model(prepare(config, tmp_path).model, config)
    letters = "abcdefghiklmnorstu"
    assert len(letters) > MOST_PASSES
    asked = Question(TEMPLATE, tuple(f"{letter} {letter}" for letter in letters))
    with pytest.raises(ZeroShotLeftOut, match=f"would read the test rows {len(letters)} times"):
        make_form(tokenizer, asked, False, 32, 64)
    assert make_form(tokenizer, Question(TEMPLATE, tuple(letters)), False, 32, 64).passes[0].behind == []


@pytest.mark.endurance
def test_words_that_the_demo_model_has_read_get_what_its_class_names_do_not(tmp_path: Path) -> None:
    """Really pretrained; where the cache does not hold it yet this takes as long as pretraining."""
    words = {"negative": "one star", "positive": "five stars"}
    read = {"zero_shot_template": "{text} My rating is {label}.", "zero_shot_words": words}
    accuracy = {}
    for name, asked in (("names", {}), ("read", read)):
        config = validated({"evaluation": asked})
        found = references.measure("zero_shot", config, prepare(config, tmp_path), tmp_path)
        accuracy[name] = found.scores["accuracy"]
    assert accuracy["names"] < 0.55 and accuracy["read"] > 0.95


@pytest.mark.hub
def test_a_sentence_encoder_says_that_it_has_no_language_head(hub_root: Path, reviews: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, really pretrained, as it lies on the Hub."""
    name = str(hub_root / "models/sentence-transformers/all-MiniLM-L6-v2")
    config = validated({"model": {"name": name}, "data": {"name": str(reviews)}})
    assert "has no language head" in left_out(config, tmp_path)


# --- in the run -------------------------------------------------------------------------------------------------------


def test_it_is_measured_once_and_then_taken_from_the_cache(
    small_config: Any, tmp_path: Path, prefect_harness: None, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = asking(small_config, "gpt2", {"bad": "film", "good": "stupid acting"})
    data = prepare(config, tmp_path)
    first = in_flow(evaluate_references, config, data, str(tmp_path))
    said = "Zero-shot asks, of the first test row: "
    assert [said in message for message in caplog.messages].count(True) == 1
    assert "Zero-shot knows the classes as film, stupid acting" in caplog.messages
    caplog.clear()
    assert in_flow(evaluate_references, config, data, str(tmp_path)) == first and list(first) == ["zero_shot"]
    assert said not in caplog.text


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_left_out_is_one_line_and_a_warning_only_to_who_asked(
    asked: bool, small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"references": ["majority", "zero_shot"]} if asked else {}
    config = small_config({"evaluation": chosen}, family="bart")
    monkeypatch.setattr(references, "get_run_logger", lambda: logging.getLogger("run"))
    with caplog.at_level("INFO", "run"):
        assert evaluate.fn("zero_shot", config, prepare(config, tmp_path), str(tmp_path), None) is None
    (record,) = [record for record in caplog.records if record.name == "run"]
    assert record.getMessage().startswith("zero_shot is left out: ")
    assert "is neither a decoder nor a masked language model" in record.getMessage()
    assert record.levelname == ("WARNING" if asked else "INFO")


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_are_not_asked(
    task: str, small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = asking(small_config, "gpt2", {})
    data = prepare(config, tmp_path).model_copy(update={"task": task})
    monkeypatch.setattr(references, "evaluated", lambda *_: pytest.fail("it was asked"))
    with caplog.at_level("INFO"):
        assert evaluate_references(config, data, str(tmp_path)) == {}
    assert "zero_shot" not in caplog.text


def test_a_measurement_is_named_by_all_that_it_depends_on(small_config: Any, tmp_path: Path) -> None:
    config = asking(small_config, "gpt2", {"bad": "film"})
    data = prepare(config, tmp_path)
    changes: list[dict[str, Any]] = [
        {"evaluation": {"zero_shot_template": "{text} so {label}"}},
        {"evaluation": {"zero_shot_words": {"bad": "dull"}}},
        {"data": {"max_length": 16}},
        {"model": {"dtype": "bfloat16"}},
    ]
    keys = [measurement_key("zero_shot", other(config, **change), data) for change in [{}, *changes]]
    assert len({*keys}) == len(changes) + 1
    assert measurement_key("zero_shot", other(config, seed=7), data) == keys[0]
    again = other(config, evaluation={"zero_shot_words": {"bad": "dull"}})
    assert measurement_key("probe", again, data) == measurement_key("probe", config, data)


def with_zero_shot(judged: Judged, accuracy: float = 0.7) -> Any:
    """The same comparison with a zero-shot rung that has this share of the rows right; half of them is chance."""
    from tasks.evaluation.predictions import Predictions
    from tasks.evaluation.verdict import judge

    rows, labels, tables = judged.predictions
    tables = tables | {"zero_shot": made_up_classifier(labels, accuracy, 2, 9)}
    predictions = Predictions(rows, labels, tables)
    return judge(judged.config, judged.data, judged.check, predictions, judged.trained, Path(judged.result.folder))


def test_the_step_is_told_from_what_the_model_knew(judged: Judged) -> None:
    result = with_zero_shot(judged)
    ours = objective("single_label").metrics[0].shown(result.rung("tuned").primary.value)
    assert f"asked in words (zero-shot) accuracy went from 0.700 to {ours}" in step_sentence(result)
    assert f"From zero-shot: 0.700 to {ours}" in description(result)
    trained_head = result.model_copy(update={"untrained_head": False})
    assert step_sentence(trained_head).startswith("From the foundation model accuracy went from 0.500")
    for chance in (judged.result, with_zero_shot(judged, 0.52)):
        assert step_sentence(chance).startswith("From the foundation model with an untrained head")
        assert "From the foundation model: 0.500 to" in description(chance)


def test_only_what_is_better_than_chance_has_learned(judged: Judged) -> None:
    assert judged.result.chance == 0.5 and not judged.result.knew_before
    for accuracy, knew in ((0.7, True), (0.52, False)):
        result = with_zero_shot(judged, accuracy)
        assert result.knew_before == knew and ("zero_shot" in learned(result)) == knew
        alone = result.model_copy(
            update={"ladder": tuple(rung for rung in result.ladder if rung.name in ("tuned", "baseline", "zero_shot"))}
        )
        assert ("is compared with chance" in "".join(only_chance(alone))) != knew
        page = question_note(judged.config, judged.data, knew)
        assert ("was not surely better than chance; other words may say more" in page) != knew
    unknown = with_zero_shot(judged).model_copy(update={"chance": None})
    assert not unknown.knew_before


def test_the_words_asked_are_on_the_page(judged: Judged) -> None:
    from tasks.evaluation.report import analysis_tables, class_report

    result, (config, data, _, trained, predictions, _) = with_zero_shot(judged), judged
    config = other(config, evaluation={"zero_shot_words": {"bad": "awful*"}, "zero_shot_template": TEMPLATE})
    rest = class_report(data, predictions, trained, 0.95), analysis_tables(data, predictions, trained, result)
    page = comparison_page(config, data, trained, result, *rest)
    assert "Zero-shot asked “{text} it is {label} from end”" in page
    assert "bad as “awful" in page and "good as “good”." in page and "awful*" not in page
    assert "Zero-shot asked" not in comparison_page(config, data, trained, judged.result, *rest)


def test_it_is_asked_by_default() -> None:
    assert "zero_shot" in EvaluationConfig().references
