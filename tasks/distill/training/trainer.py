"""TRL's trainer with our objectives in place of its loss."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tasks.distill.training.gradual import GrowingZeros
from tasks.distill.training.masks import HeldZeros
from tasks.distill.training.memory import Seen
from tasks.distill.training.objective import Objective
from tasks.distill.training.shared_layers import HeldCopies
from tasks.distill.training.shares import WITHHELD, Blankable, Order, Shares, collate_share
from tasks.distill.training.terms import Tally, gradient_norms
from tasks.shared.model.encoding import IGNORED
from tasks.shared.model.head import core_of


class Shared:
    """Trainer mixin: each process takes its share of a batch; measurements cover all processes."""

    accelerator: Any
    args: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    terms_of: Any
    _get_train_sampler: Any
    _prepare_inputs: Any

    def get_train_dataloader(self) -> Any:
        """Return batches in the order of the epoch."""
        return self._loader(self.train_dataset, self._get_train_sampler(), self.args.train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return batches in the order of the rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(rows, range(len(rows)), self.args.eval_batch_size)

    def _loader(self, rows: Any, order: Order, each: int) -> Any:
        from torch.utils.data import DataLoader

        count = self.accelerator.num_processes
        shares: Any = Shares(order, each * count, self.accelerator.process_index, count)
        collate = partial(collate_share, self.data_collator)
        found: Any = Blankable(rows)
        return DataLoader(found, batch_sampler=shares, collate_fn=collate, pin_memory=self.args.dataloader_pin_memory)

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: Any = None, ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> Any:  # fmt: skip
        """Compute the validation loss as over one batch, whatever the batch size and processes."""
        import torch
        from transformers.trainer_utils import EvalLoopOutput

        rows = dataloader.dataset
        count = sum(label != IGNORED for row in rows.rows for label in row["labels"][1:])
        total = torch.zeros((), device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for batch in dataloader:
                total += sum(self.terms_of(self.model, self._prepare_inputs(batch), max(1, count)).values())
        found = self.accelerator.reduce(total, "sum").item()
        nothing: Any = None
        return EvalLoopOutput(nothing, nothing, {f"{metric_key_prefix}_loss": found}, len(rows))


class Telemetry:
    """Trainer mixin that records each term, and each term's gradient once per epoch.

    awaited: terms whose gradient has not been measured yet in this epoch.
    """

    accelerator: Any
    args: Any
    state: Any
    is_fsdp_enabled: bool
    steps_per_epoch: int

    def begin_telemetry(self) -> None:
        """Start without measurements."""
        self.tally = Tally()
        self.term_names: list[str] = []
        self.measured: dict[str, float] = {}
        self.awaited: list[str] = []
        self.begun_at = -1

    def note(self, terms: Mapping[str, Any], model: Any) -> None:
        """Record one forward pass; measure each term's gradient once per epoch.

        A term is measured in the first batch of the epoch in which it is not zero.  With fsdp, gradients are not measured, since no
        process has a whole one.
        """
        self.term_names = list(terms)
        if len(terms) < 2:
            return
        self.tally.add(terms)
        if self.is_fsdp_enabled:
            return
        step = self.state.global_step
        if step % self.steps_per_epoch == 0 and step != self.begun_at:
            self.begun_at, self.awaited = step, list(terms)
        if found := {name: terms[name] for name in self.awaited if self._is_here(terms[name])}:
            self.awaited = [name for name in self.awaited if name not in found]
            reduce = self.accelerator.reduce if self.accelerator.num_processes > 1 else None
            self.measured |= gradient_norms(found, model.parameters(), reduce)

    def _is_here(self, term: Any) -> bool:
        """Return True if a term is not zero in any process's part of the batch.

        Since batches are grouped by length, some have none of a term.
        """
        size = term.detach().float().abs()
        return bool((self.accelerator.reduce(size, "sum") if self.accelerator.num_processes > 1 else size).item())

    def term_figures(self) -> dict[str, float]:
        """Return further figures for a log line: means over all processes since the last line."""
        if len(self.term_names) < 2:
            return {}
        means, measured = self.tally.take(self.state.global_step), self.measured
        self.measured = {}
        if self.accelerator.num_processes > 1:
            import torch

            values = torch.tensor([means[name] for name in self.term_names], device=self.args.device)
            means = dict(zip(self.term_names, self.accelerator.reduce(values, "sum").tolist(), strict=True))
        return {f"{name}_loss": value for name, value in means.items()} | measured


class CastWeights:
    """Trainer mixin that computes with bfloat16 copies of the weights, where that is wanted.

    cast: see `casts_weights`.  FSDP casts the weights that it gathers by its own policy (`training_arguments`).
    """

    is_fsdp_enabled: bool
    cast: bool = False

    def with_weights(self, model: Any, work: Callable[[], Any]) -> Any:
        """Return work(), with the model's weights as they are to be computed with."""
        if not self.cast or self.is_fsdp_enabled:
            return work()
        import torch

        from tasks.distill.training.working_copy import with_cast_weights

        return with_cast_weights(model, torch.bfloat16, work)


def objective_trainer() -> type[Any]:
    """Return TRL's SFTTrainer with an `Objective` as its loss.

    Batches, loss, curve and gradients do not depend on the number of processes, except for rounding.
    """
    from trl import SFTTrainer
    from trl.models.utils import _ForwardRedirection  # private: the range of trl is one minor version wide

    class ObjectiveTrainer(Shared, Telemetry, CastWeights, GrowingZeros, HeldZeros, HeldCopies, SFTTrainer):
        objective: Objective

        def __init__(self, *more: Any, **named: Any) -> None:
            super().__init__(*more, **named)
            self.begin_telemetry()
            self.seen = Seen(0)
            self.through_wrapper = _ForwardRedirection()

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            found = self.terms_of(model, inputs, num_items_in_batch)
            self.note(found, model)
            # DDP and FSDP average gradients, and every process has divided by the count of all
            return sum(found.values()) * (1 if num_items_in_batch is None else self.accelerator.num_processes)

        def terms_of(self, model: Any, inputs: Mapping[str, Any], count: Any) -> dict[str, Any]:
            """Return the objective's terms of a share; zeros with zero gradients for a blank one."""
            blank = WITHHELD in inputs
            if blank:
                inputs = {**inputs, "labels": inputs[WITHHELD]}
            self.seen.rows, self.seen.tokens = inputs["input_ids"].shape
            inner = self.accelerator.unwrap_model(model)
            self.objective.step = self.state.global_step

            def terms() -> dict[str, Any]:
                with self.accelerator.autocast():  # accelerate wraps model.forward only, but we call its parts
                    found = self.with_weights(inner, lambda: self.objective.terms(inner, inputs, count))
                return {name: value * 0 for name, value in found.items()} if blank else found

            # DDP and FSDP prepare the backward pass in their own forward
            wrapped = inner is not model or self.is_fsdp_enabled
            return self.through_wrapper(model, inner, terms) if wrapped else terms()

        def _issue_warnings_after_load(self, load_result: Any) -> None:
            """Warn without tied weights, which a checkpoint stores under one name only."""
            tied = core_of(self.model).all_tied_weights_keys
            missing = [name for name in load_result.missing_keys if name not in tied]
            super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

        def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
            super().log(logs | self.term_figures() if "loss" in logs else logs, *more, **named)

    return ObjectiveTrainer
