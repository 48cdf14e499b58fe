"""The embedded demo: film reviews and a small GPT-2, both made here, so that nothing is downloaded."""

import csv
import hashlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tasks.base.disk import check_space
from tasks.base.files import whole

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


SPLIT_SIZES = {"train": 1600, "validation": 400, "test": 600}

LABELS = ("negative", "positive")

END_OF_TEXT = "<|endoftext|>"

POSITIONS = 128  # tokens the model can see; the longest document has 82

REVIEWS_BYTES, MODEL_BYTES = 250_000, 4_000_000  # on disk


def _choices(text: str) -> list[str]:
    return [choice.strip() for choice in text.split("|")]


# Everything in pairs is (negative, positive): a mood, 0 or 1, is an index.
SUBJECTS = _choices("""
    the acting | the story | the dialogue | the camera work | the music | the ending | the pacing
    | the direction | the script | the casting | the humour | the editing | the lead performance | the opening
    | the villain | the love story | the final act""")

ADJECTIVES = (
    _choices("""dull | dreadful | clumsy | boring | stale | lazy | shallow | tedious | lifeless | forced
        | hollow | messy | tiresome | awkward"""),
    _choices("""wonderful | gripping | clever | superb | fresh | charming | elegant | vivid | subtle
        | confident | brilliant | graceful | inspired | delightful"""),
)

NOUNS = (
    _choices("a mess | a bore | a disaster | a failure | a chore | a letdown"),
    _choices("a masterpiece | a triumph | a delight | a joy | a gem | a treat"),
)

VERDICTS = (
    _choices("let me down | sent me to sleep | spoils the film | wears thin | gets worse by the minute"),
    _choices("won me over | kept me hooked | lifts the film | stays with me | gets better by the minute"),
)

FRAMES = _choices("""
    | | | | | in this thriller, | for a first feature, | to my surprise, | on a second viewing, | once again,
    | as so often, | this time, | in this sequel,""")

# Some of these hold a negation word that negates nothing, so that the word alone decides nothing.
PLAIN = _choices("""
    {s} is {adj} | {s} is {adj} | {s} is truly {adj} | {s} is {noun} | {s} {verdict} | I found {s} {adj}
    | nobody can deny that {s} is {adj} | {s} is not only {adj} but also {adj2}
    | there is something {adj} about {s}""")

NEGATED = _choices("""
    {s} is not at all {adj} | {s} is never {adj} | {s} is hardly {adj} | {s} is far from {adj}
    | {s} is anything but {adj} | {s} is hardly {noun} | {s} is by no means {noun}
    | nothing about {s} is {adj} | nobody could call {s} {adj} | I would not call {s} {adj}
    | there is nothing {adj} about {s}""")

CONTRASTS = _choices("""
    {minor}, but {main} | {minor}, but {main}, and that is what stays | although {minor}, {main}
    | while {minor}, {main} | {main}, even though {minor} | {main}, although {minor}
    | {minor}; in the end, however, {main}""")

CLOSINGS = (
    _choices("""I would not sit through it again. | I left the cinema with a headache.
        | My evening was wasted. | We said little on the way home.
        | I have already told my friends to stay away. | It deserves to be forgotten. | My rating is one star.
        | I was glad when the lights came up.
        | Do not spend your money on it. | This one is best avoided."""),
    _choices("""I would gladly see it again. | I left the cinema with a smile. | My evening was well spent.
        | We talked about it all the way home. | I have already told my friends to go.
        | It deserves to be seen. | My rating is five stars.
        | I was sorry when the lights came up. | Do yourself a favour and go.
        | This one is worth every penny."""),
)


def _clause(rng: random.Random, mood: int, subject: str, negated_share: float) -> str:
    """One clause of this mood; a negated one gets there with a word of the opposite mood."""
    negated = rng.random() < negated_share
    words = 1 - mood if negated else mood
    adjective, second = rng.sample(ADJECTIVES[words], 2)
    form = rng.choice(NEGATED if negated else PLAIN)
    noun, verdict = rng.choice(NOUNS[words]), rng.choice(VERDICTS[words])
    return form.format(s=subject, adj=adjective, adj2=second, noun=noun, verdict=verdict)


def _sentence(rng: random.Random, mood: int, negated_share: float = 0.4, contrast_share: float = 0.4) -> str:
    """One review sentence of this mood; in a contrast the main clause decides."""
    first, second = rng.sample(SUBJECTS, 2)
    text = _clause(rng, mood, first, negated_share)
    if rng.random() < contrast_share:
        minor = _clause(rng, 1 - mood, second, negated_share)
        text = rng.choice(CONTRASTS).format(main=text, minor=minor)
    text = f"{rng.choice(FRAMES)} {text}".strip()
    return text[0].upper() + text[1:] + "."


def _reviews(seed: int) -> dict[str, list[tuple[str, str]]]:
    """(text, label) rows by split: balanced, and no text twice anywhere."""
    rng, seen = random.Random(seed), set[str]()
    splits: dict[str, list[tuple[str, str]]] = {}
    for split, size in SPLIT_SIZES.items():
        rows: list[tuple[str, str]] = []
        while len(rows) < size:
            mood = len(rows) % 2
            text = _sentence(rng, mood)
            if text not in seen:
                seen.add(text)
                rows.append((text, LABELS[mood]))
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def _document(rng: random.Random, negated_share: float, contrast_share: float) -> list[str]:
    """The sentences of one unlabelled review; they agree with each other, as in a real one."""
    mood = rng.randrange(2)
    opening, ending = (_sentence(rng, mood, negated_share, contrast_share) for _ in range(2))
    return [opening, *rng.sample(CLOSINGS[mood], 2), _sentence(rng, mood, 0, 0), ending]


def _corpus(seed: int, documents: int) -> list[str]:
    """Unlabelled reviews, none of whose sentences is in any split, from plain ones to contrasts.

    The order helps: 1,200 steps without it (and with an initial spread of 0.02) told the mood of a sentence
    0.6 to 0.7 of the time; about 1,000 with it, 0.9 on contrasts and nearly always elsewhere.
    """
    rng = random.Random(f"corpus {seed}")
    held_out = {text for rows in _reviews(seed).values() for text, _ in rows}
    corpus: list[str] = []
    while len(corpus) < documents:
        stage = 4 * len(corpus) // documents
        sentences = _document(rng, 0.4 if stage > 0 else 0, 0.4 if stage > 1 else 0)
        if held_out.isdisjoint(sentences):
            corpus.append(" ".join(sentences))
    return corpus


def write_reviews(folder: Path, seed: int = 0) -> None:
    """Write train.csv, validation.csv and test.csv, columns text and label, as a new folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder, REVIEWS_BYTES, replace=False) as scratch:
        scratch.mkdir()
        for split, rows in _reviews(seed).items():
            with open(scratch / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])


def _train_tokenizer(corpus: list[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer; like GPT-2's it has an end of text and no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    end = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=POSITIONS, **end)


def _new_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "GPT2LMHeadModel":
    """A random GPT-2 of 0.9 million weights; the caller's random state is left as it was."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=128, n_layer=4, n_head=4)
    config.update({"bos_token_id": end, "eos_token_id": end})
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    config.initializer_range = 0.08  # at GPT-2's 0.02 and this width, plain sentiment took 300 steps, not 180
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def _fit(model: "GPT2LMHeadModel", rows: list[list[int]], batch_size: int) -> None:
    """Next-token prediction, each row once and in order, with AdamW and a one-cycle schedule."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence
    from tqdm import tqdm

    steps = len(rows) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for step in tqdm(range(steps), desc="pretraining the demo model", unit="step", mininterval=0.5):
        batch = [torch.tensor(row) for row in rows[step * batch_size : (step + 1) * batch_size]]
        inputs = pad_sequence([row[:-1] for row in batch], batch_first=True)
        targets = pad_sequence([row[1:] for row in batch], batch_first=True, padding_value=-100)
        loss = cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def pretrain_model(folder: Path, seed: int = 0, steps: int = 1000, batch_size: int = 16) -> None:
    """Pretrain a small GPT-2 and its tokenizer on unlabelled reviews; save both as a new folder."""
    import torch

    corpus = _corpus(seed, steps * batch_size)
    tokenizer = _train_tokenizer(corpus[::4])
    model = _new_model(tokenizer, seed)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(corpus)["input_ids"]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fixed bits; two threads on busy cores starved: over 10 minutes, not 2
    try:
        _fit(model, rows, batch_size)
    finally:
        torch.set_num_threads(threads)
    with whole(folder, MODEL_BYTES, replace=False) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def demo_folder() -> Path:
    """Where the demo is cached; named by a hash of this file, so that a change here never finds old data."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return cache / "peft-flow" / f"demo-{version}"


def demo_reviews() -> Path:
    """The folder of the demo's three csv files, written first when missing."""
    folder = demo_folder() / "reviews"
    if not folder.is_dir():
        write_reviews(folder)
    return folder


def demo_model() -> Path:
    """The folder of the demo's model and tokenizer, pretrained first (about a minute) when missing."""
    folder = demo_folder() / "model"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # a second run waits for what a first one makes
        if not folder.is_dir():
            check_space(folder, MODEL_BYTES)
            pretrain_model(folder)
    return folder
