"""A Trainer that can be stopped anywhere: it goes on from its newest checkpoint, bit for bit as if nothing had been.

What the checkpoints of Trainer lack for that, see tasks/training/resume.py. Imported only where training begins: it is
built on the libraries that take seconds to import.
"""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from tasks.training import resume
from tasks.training.checkpoint import (
    Checkpoint,
    as_json,
    from_json,
    newest_checkpoint,
    pack_optimizer,
    put_back,
    random_state,
    set_random_state,
    tensors_sha256,
    trained_tensors,
    unpack_optimizer,
    write_checkpoint,
)
from tasks.training.pieces import Pieces
from tasks.training.ranks import Ranks
from tasks.training.resume import (
    FIRST_GUESS_SECONDS,
    PROBE_ROWS,
    Best,
    NotContinued,
    averages,
    is_same,
    rank_pattern,
    set_averages,
    set_rank_pattern,
)
from tasks.training.saving import Saving


class ResumableTrainer(Trainer):
    """`go_on()` trains from the newest intact checkpoint in `folder`.

    `best` are its best weights, those of step `first_best` or a later one; `seconds` and `examples` count all attempts.
    Where `stop()` is true it writes a checkpoint at the end of the step and raises KeyboardInterrupt. `say` is told
    what it finds. Raises FloatingPointError where a loss or a weight stops being a number, NotContinued where a
    checkpoint does not give back what was trained.
    """

    state: TrainerState

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        stop: Callable[[], bool],
        first_best: int,
        pieces: Pieces,
        ranks: Ranks,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.first_best, self.pieces, self.ranks = first_best, pieces, ranks
        self.folder, self.say, self.stop = folder, say, stop
        self.best = Best()
        self.latest: tuple[Any, Any] = (None, None)
        """Logits and labels of the validation rows, set by whoever computes the metrics."""
        self.found: Checkpoint | None = None
        self.seconds_before = self.examples_before = 0.0
        self.tokens = self.tokens_with_padding = 0
        """Of the training batches."""
        self.started = self.saved = time.monotonic()
        self.cost = FIRST_GUESS_SECONDS
        self.step_loss, self.finite_loss = 0.0, ""
        self.epoch_state = random_state()
        self.is_agreed = False  # by several processes, to write a checkpoint at the end of this step
        self.add_callback(Saving(self))

    # --- stopping and going on

    def go_on(self) -> None:
        """Train from the newest intact checkpoint of `folder`, else from the start, to the end."""
        self.found = self.newest()
        if self.found:
            self.read(self.found)
            self.say(f"Training goes on from step {self.found.step}")
        self.started = self.saved = time.monotonic()
        self.ranks.check_alike(self.model, self.found.step if self.found else 0)
        self.train()
        self.ranks.check_alike(self.model, self.state.global_step)
        self.tokens, self.tokens_with_padding = self.tokens_of_all()

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, if as many processes have written it: each goes on with its random state."""
        found = newest_checkpoint(self.folder, self.say) if self.ranks.is_first else None
        before = found.state().get("processes", 1) if found else self.ranks.size
        if before != self.ranks.size:
            found = None
            shutil.rmtree(self.folder)
            self.say(
                f"This training was begun with training.processes {before}; with {self.ranks.size} it would end "
                "otherwise, so it begins anew"
            )
        step = self.ranks.told(found.step if found else None)
        if step is None:
            return None
        found = Checkpoint(self.folder / f"checkpoint-{step}", step)
        self.ranks.hand_over(found.folder)
        return found

    def _inner_training_loop(self, *positional: Any, **keywords: Any) -> Any:
        # not told to `train`, which would look for Trainer's own files
        path = str(self.found.folder) if self.found else None
        return super()._inner_training_loop(*positional, **(keywords | {"resume_from_checkpoint": path}))

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @property
    def examples(self) -> float:
        """Training rows that went through the model."""
        begun, now, per_epoch = self.found.step if self.found else 0, self.state.global_step, self.steps_per_epoch()
        epochs = now // per_epoch - begun // per_epoch
        missing = per_epoch * self.step_rows() - len(self.train_dataset)  # in the last step of an epoch
        return self.examples_before + (now - begun) * self.step_rows() - epochs * missing

    def step_rows(self) -> int:
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_dataset) / self.step_rows())

    def is_due(self) -> bool:
        return self.cost <= resume.MOST_SHARE * (time.monotonic() - self.saved)

    # --- writing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.control.should_training_stop:  # it is over; what comes next takes moments
            return

        begun = time.monotonic()
        weights = trained_tensors(self.model)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise FloatingPointError(self.advice(f"a weight is not a number after step {self.state.global_step}"))
        self.ranks.check_alike(self.model, self.state.global_step)
        others, tokens = self.random_of_others(), self.tokens_of_all()
        probe_loss = self.probe_loss() if self.ranks.is_first or self.ranks.sharded else None
        if not self.ranks.is_first:
            return
        optimizer, optimizer_values = pack_optimizer(self.optimizer)
        generators, generator_values = random_state()
        state = {
            "weights_sha256": tensors_sha256(weights),
            "probe_loss": probe_loss,
            "optimizer": optimizer_values,
            "scheduler": self.lr_scheduler.state_dict(),
            "random": generator_values,
            "epoch_random": self.epoch_state[1],
            "trainer": vars(self.state) | {"stateful_callbacks": self.callback_states()},
            "loss_since_log": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "seconds": self.seconds,
            "examples": self.examples,
            "tokens": tokens,
            "processes": self.ranks.size,
            "others": others,
            "best_step": self.best.step,
            "best_rank_pattern": self.best.rank_pattern,
            "rank_pattern": rank_pattern(self.model),
        }
        groups = {
            "weights": weights,
            "optimizer": optimizer,
            "random": generators,
            "epoch_random": self.epoch_state[0],
            "averages": averages(self.model),
        }
        if self.best.step:
            groups["best"] = self.best.tensors
            groups["validation"] = self.best.rows()
        write_checkpoint(self.folder, self.state.global_step, groups, state)
        self.saved = time.monotonic()
        self.cost = self.saved - begun

    def random_of_others(self) -> list[Any]:
        """The random state of each process but the first."""
        if self.ranks.size == 1:
            return []
        return self.ranks.gathered({"random": as_json(random_state()), "epoch_random": as_json(self.epoch_state)})[1:]

    def tokens_of_all(self) -> list[int]:
        """Of the training batches of all processes, without padding and with."""
        seen = self.ranks.gathered([self.tokens, self.tokens_with_padding])
        return [sum(counts) for counts in zip(*seen, strict=True)]

    def callback_states(self) -> dict[str, Any]:
        kept = [callback for callback in self.callback_handler.callbacks if isinstance(callback, ExportableState)]
        return {type(callback).__name__: callback.state() for callback in kept}

    def probe_loss(self) -> float:
        """Of the first validation rows; draws no random number."""
        import torch

        rows = [self.eval_dataset[index] for index in range(min(PROBE_ROWS, len(self.eval_dataset)))]
        batch = self._prepare_inputs(self.data_collator(rows))
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            labels = batch.pop("labels")
            loss = float(self.compute_loss_func(self.model(**batch), labels))
        self.model.train(training)
        return loss

    # --- reading

    def read(self, found: Checkpoint) -> None:
        state = found.state()
        put_back(self.model, found.tensors("weights"))
        set_rank_pattern(self.model, state["rank_pattern"])
        set_averages(self.model, found.tensors("averages"))
        if tensors_sha256(trained_tensors(self.model)) != state["weights_sha256"]:
            raise NotContinued(f"the adapter read from {found.folder} is not the one that was trained")
        loss, before = self.probe_loss(), state["probe_loss"]
        if not is_same(loss, before):
            raise NotContinued(
                f"the model read from {found.folder} has a loss of {loss:.6f} on the first validation rows; it was "
                f"{before:.6f} when that was written"
            )
        self.seconds_before, self.examples_before = state["seconds"], state["examples"]
        if not self.ranks.is_first:
            return
        self.tokens, self.tokens_with_padding = state["tokens"]
        if state["best_step"]:
            self.best.step, self.best.rank_pattern = state["best_step"], state["best_rank_pattern"]
            self.best.tensors, validation = found.tensors("best"), found.tensors("validation")
            self.best.logits, self.best.labels = validation["logits"].numpy(), validation["labels"].numpy()

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, steps_per_epoch, epochs, None, trial)
        if not self.found:
            return 0, 0
        stored = self.found.state()["trainer"]
        callbacks = stored.pop("stateful_callbacks")
        self.state = TrainerState(**stored, stateful_callbacks=self.state.stateful_callbacks)
        self.state.init_training_references(self, max_steps, epochs, trial)
        for callback in self.callback_handler.callbacks:
            for name, value in callbacks.get(type(callback).__name__, {}).get("attributes", {}).items():
                setattr(callback, name, value)
        done, left = divmod(self.state.global_step, steps_per_epoch)
        return done, left * self.args.gradient_accumulation_steps

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.found:
            state = self.found.state()
            unpack_optimizer(self.optimizer, self.found.tensors("optimizer"), state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.found:
            self.set_random_state("random")

    def set_random_state(self, group: str) -> None:
        """That of this process in the checkpoint: `random`, or `epoch_random` of when the epoch began."""
        assert self.found
        state = self.found.state()
        if self.ranks.is_first:
            set_random_state(self.found.tensors(group), state[group])
        else:
            set_random_state(*from_json(state["others"][self.ranks.number - 1][group]))

    # --- watching

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order given, which is by length: Trainer would group by length what it has shuffled before."""
        from torch.utils.data import SequentialSampler

        return SequentialSampler(eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.ranks.order(super()._get_train_sampler(train_dataset))

    def get_batch_samples(self, *arguments: Any) -> tuple[list[Any], int]:
        """This process's part of the batches of a step, and how many labels all have: Trainer would leave out those
        that are -100."""
        batches, _ = super().get_batch_samples(*arguments)
        mine = [self.ranks.part(batch, self.args.per_device_train_batch_size) for batch in batches]
        return mine, sum(batch["labels"].numel() for batch in batches)

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads the count, and Trainer would walk through all weights for it in every step."""
        return 0

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        losses = []
        missing = self.missing_passes(self.pieces.count(inputs) if inputs else 0)
        for piece in self.pieces.of(inputs) if inputs else ():
            self.tokens += int(piece["attention_mask"].sum())
            self.tokens_with_padding += piece["attention_mask"].numel()
            # each piece's share of the step: the loss is a sum over its labels by the number of those of the step
            losses.append(super().training_step(model, piece, *arguments, **keywords))
            value = float(losses[-1])
            if not math.isfinite(value):
                raise FloatingPointError(self.advice(f"the loss is {value} at step {self.state.global_step + 1}"))
            self.step_loss += value
        for _ in range(missing):
            self.pass_without_effect(model)
        loss = sum(losses[1:], losses[0]) if losses else self._tr_loss.new_zeros(())
        return loss if self.ranks.size == 1 else self.joined(loss)

    def missing_passes(self, mine: int) -> int:
        """How many fewer passes this process has in this step than another: with shared weights all need as many."""
        return int(max(self.ranks.numbers(mine))[0]) - mine if self.ranks.sharded else 0

    def pass_without_effect(self, model: Any) -> None:
        """Another process computes, with the weights of this one: gradients of zero, and no random number drawn."""
        import torch

        row = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
        row.pop("labels")
        with torch.random.fork_rng(), self.compute_loss_context_manager():
            self.accelerator.backward(0 * model(**row).logits.sum())

    def joined(self, loss: Any) -> Any:
        """Of the processes' losses for their parts of a batch, the last; the others are added one by one, as those of
        one process's batches are. After the last batch of a step, the gradients are added up."""
        told = self.ranks.numbers(loss.item(), self.stop() or self.is_due())
        self.is_agreed = bool(told[0][1])
        *others, last = [other for other, _ in told]
        for other in others:
            self._tr_loss += loss.new_tensor(other)
        self.step_loss += sum((*others, last)) - loss.item()
        if self.accelerator.sync_gradients:
            self.ranks.add_up(weight for weight in self.model.parameters() if weight.requires_grad)
        return loss.new_tensor(last)

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """By the first process alone, in the batches of one; the others hear the scores. Shared weights need all."""
        import torch

        found = None
        if self.ranks.is_first:
            found = super().evaluation_loop(*arguments, **named)
        elif self.ranks.sharded:
            with torch.random.fork_rng():  # a loader draws a number
                found = super().evaluation_loop(*arguments, **named)
        told = self.ranks.told([found.metrics, found.num_samples] if found else None)
        return found or EvalLoopOutput(None, None, *told)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> tuple[Any, Any, Any]:
        import torch

        losses, logits, labels = [], [], []
        for piece in self.pieces.of(inputs):
            loss, found, given = super().prediction_step(model, piece, *arguments, **keywords)
            losses.append(loss * (len(given) / len(inputs["labels"])))  # a mean over the piece's rows
            logits.append(found[0] if isinstance(found, tuple) else found)
            labels.append(given)
        return sum(losses[1:], losses[0]), torch.cat(logits), torch.cat(labels)

    def advice(self, fault: str) -> str:
        return f"{fault}{self.finite_loss}; try a lower training.learning_rate or a longer training.warmup_fraction"

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        may_be = self.state.global_step >= self.first_best
        is_best = may_be and bool(super()._determine_best_metric(metrics, trial))
        if is_best or not self.best.step:
            best = self.best
            best.step, best.tensors = self.state.global_step, trained_tensors(self.model)
            best.rank_pattern = rank_pattern(self.model)
            best.logits, best.labels = self.latest
        return is_best

    def use_best(self) -> None:
        """Give the model its best weights."""
        if self.best.step and self.best.step != self.state.global_step:
            put_back(self.model, self.best.tensors)
            set_rank_pattern(self.model, self.best.rank_pattern)
