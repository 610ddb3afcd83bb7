"""TRL's trainer with an objective of ours in the place of its loss."""

from collections.abc import Mapping
from typing import Any

from tasks.distill.training.objective import Objective
from tasks.distill.training.terms import Tally, gradient_norms


def objective_trainer() -> type[Any]:
    """TRL's SFTTrainer with an `Objective` for its loss; it logs each term, and each term's gradient once an epoch."""
    from trl import SFTTrainer
    from trl.models.utils import _ForwardRedirection  # private: the range of trl is one minor version wide

    class ObjectiveTrainer(SFTTrainer):
        objective: Objective
        steps_per_epoch: int

        def __init__(self, *more: Any, **named: Any) -> None:
            super().__init__(*more, **named)
            self.tally = Tally()
            self.term_names: list[str] = []
            self.measured: dict[str, float] = {}
            self.through_wrapper = _ForwardRedirection()

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inner = self.accelerator.unwrap_model(model)
            self.objective.step = self.state.global_step

            def terms() -> Any:
                with self.accelerator.autocast():  # accelerate wraps model.forward alone, and we call its parts
                    return self.objective.terms(inner, inputs, num_items_in_batch)

            # DDP and FSDP prepare the backward pass in their own forward
            found = terms() if inner is model else self.through_wrapper(model, inner, terms)
            loss = sum(found.values())
            if model.training:
                self._note(found, inner)
                loss = loss * (
                    1 if num_items_in_batch is None else self.accelerator.num_processes
                )  # gradients are averaged
            return (loss, {"loss": loss}) if return_outputs else loss

        def _note(self, terms: Mapping[str, Any], model: Any) -> None:
            self.term_names = list(terms)
            if len(terms) < 2:
                return
            self.tally.add(terms)
            if self.state.global_step % self.steps_per_epoch == 0 and self.accelerator.num_processes == 1:
                self.measured = gradient_norms(terms, model.parameters())

        def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
            if "loss" in logs and len(self.term_names) > 1:
                steps = self.state.global_step - self._globalstep_last_logged
                logs |= {f"{name}_loss": value for name, value in self.tally.take(steps).items()} | self.measured
                self.measured = {}
            super().log(logs, *more, **named)

    return ObjectiveTrainer
