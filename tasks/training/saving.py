"""When a training writes a checkpoint, and when it stops; what it saves when it is broken off."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, set_seed

from tasks.base.records import digest
from tasks.training.checkpoint import random_state

if TYPE_CHECKING:
    from tasks.training.trainer import ResumableTrainer


class Saving(TrainerCallback):
    """When to write a checkpoint, when to stop, and what Trainer does not restore itself."""

    def __init__(self, trainer: "ResumableTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if found := self.trainer.found:
            kept = found.state()
            self.trainer._tr_loss.fill_(kept["loss_since_log"])
            self.trainer._globalstep_last_logged = kept["last_logged"]
        elif number := self.trainer.ranks.number:  # the first goes on with the numbers that one process would draw
            set_seed(int(digest([args.seed, number])[:8], 16))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self.trainer.found
        if found and state.global_step == found.step:
            self.trainer.set_random_state("epoch_random" if found.step % self.trainer.steps_per_epoch() else "random")
        self.trainer.epoch_state = random_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.finite_loss = f", and was {trainer.step_loss:.4g} at step {state.global_step}"
        trainer.step_loss = 0.0
        # at the end of an epoch, validation comes first: a run that goes on would skip it
        if state.global_step % trainer.steps_per_epoch() and not control.should_training_stop:
            control.should_save = trainer.is_agreed if trainer.ranks.size > 1 else trainer.stop() or trainer.is_due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = self.trainer.ranks.told(self.trainer.stop() or self.trainer.is_due())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ranks.told(self.trainer.stop()) and not control.should_training_stop:
            raise KeyboardInterrupt


class WholeWeights:
    """The trained weights as they were before the update at hand: one that is broken off leaves some old, some new."""

    def __init__(self, model: Any) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.before: list[Any] = []

    def callback(self) -> TrainerCallback:
        whole = self

        class WholeWeightsCallback(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                whole.before = [weight.detach().clone() for weight in whole.weights]

            def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                whole.before = []

        return WholeWeightsCallback()

    def restore(self) -> None:
        """Undo what was done of an update that did not come to its end."""
        for weight, before in zip(self.weights, self.before, strict=False):
            weight.data.copy_(before)
