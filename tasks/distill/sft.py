"""Supervised fine-tuning on traces: response distillation (Kim and Rush 2016, arXiv 1606.07947, section 3.2).

The student learns to write the teacher's accepted answers; TRL's SFTTrainer does the training, only the tokens
of the final answer count, and a killed run goes on from its last checkpoint (`checkpoints.py`).
"""

import csv
import logging
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.checkpoints import keeper, last_checkpoint, resumable, train
from tasks.shared.chat import answer_tokens
from tasks.shared.errors import DataError, TechniqueError
from tasks.shared.models import has_cpu_bfloat16, load_model, load_tokenizer, save_model
from tasks.shared.progress import progress_bar
from tasks.shared.rows import Row, read_rows
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

log = logging.getLogger(__name__)
IGNORED = -100
"""Label of a token that does not count, by torch's convention."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SFT:
    """Fine-tune every weight of a model on the answers of a traces artifact."""

    ports: ClassVar[Mapping[str, Port]] = {"model": Port((Kind.MODEL,)), "data": Port((Kind.TRACES, Kind.CORPUS))}
    produces: ClassVar[Kind] = Kind.MODEL
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "trl", "accelerate", "tokenizers", "gguf")
    unkeyed: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})
    """The recomputed activations are those of the forward pass bit for bit: there is no dropout."""

    epochs: Annotated[float, Field(gt=0)] = 6
    """Passes over the training rows at the most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak step size of AdamW."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """How the step size falls after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the step size rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Conversations per forward pass."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(gt=8)] = 512
    """Longer conversations are refused, not cut: a cut answer teaches cut answers."""
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Share of phrasing groups kept from training to watch for overfitting; 0 trains on all and stops at the last epoch."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop after this many epochs without a better validation loss; 0 trains all epochs. The best epoch is kept either way."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay float32. auto: bfloat16 where the processor has it."""
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """Leave the embedding (and a head tied to it) and this many first layers as they are: the backward pass ends there.

    Language and form sit low in a model and are kept; facts and answers are learnt in the layers above.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 30 % more time."""

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Train and write a Hugging Face folder in bfloat16 with loss.csv.

        The last checkpoint stays in scratch until the artifact is in its place: a kill before that costs no training.
        Raises DataError for rows that are too long or too few, TechniqueError when the loss is no longer a number.
        """
        source = inputs.one("model").path
        tokenizer = load_tokenizer(source)
        rows = read_rows(inputs.one("data").path / "train.jsonl")
        training, validation = split_groups(rows, self.validation, run.seed)
        trainer = self._trainer(
            source,
            tokenizer,
            encode(training, tokenizer, self.max_tokens),
            encode(validation, tokenizer, self.max_tokens),
            run,
        )
        train(trainer, last_checkpoint(run.scratch / "checkpoints"))
        history = trainer.state.log_history
        write_curve(out / "loss.csv", history)
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_model(model, tokenizer, out)
        losses = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
        return {
            "rows": len(training),
            "epochs": round(float(trainer.state.epoch or 0), 2),
            "train_loss": round(
                next((float(entry["loss"]) for entry in reversed(history) if "loss" in entry), math.nan), 4
            ),
            "validation_loss": round(min(losses), 4) if losses else "none",
            "optimizer_steps": trainer.state.global_step,
        }

    def _trainer(
        self,
        source: Path,
        tokenizer: "PreTrainedTokenizerBase",
        training: "list[dict[str, Any]]",
        validation: "list[dict[str, Any]]",
        run: StepRun,
    ) -> Any:
        import torch
        from datasets import Dataset
        from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
        from trl import SFTConfig

        torch.set_num_threads(run.threads)
        set_seed(run.seed)
        model = load_model(source, "float32")
        freeze(model, self.frozen_layers)
        if run.device == "cpu":
            model.set_attn_implementation("eager")  # 15 % faster here: the fused kernel's backward pass is slow on CPUs
        watched = bool(validation)
        steps_per_epoch = math.ceil(len(training) / (self.batch_size * self.accumulation))
        arguments = SFTConfig(
            output_dir=str(run.scratch / "checkpoints"),
            num_train_epochs=self.epochs, learning_rate=self.learning_rate, lr_scheduler_type=self.schedule,
            warmup_steps=int(self.warmup_ratio * steps_per_epoch * self.epochs), weight_decay=self.weight_decay,
            per_device_train_batch_size=self.batch_size, per_device_eval_batch_size=self.batch_size, gradient_accumulation_steps=self.accumulation,
            gradient_checkpointing=self.gradient_checkpointing, max_length=None, packing=False,
            dataset_kwargs={"skip_prepare_dataset": True}, train_sampling_strategy="group_by_length",
            bf16=use_bfloat16(self.precision, run.device), use_cpu=run.device == "cpu", dataloader_pin_memory=run.device != "cpu",
            eval_strategy="epoch" if watched else "no", save_strategy="epoch", save_total_limit=None, load_best_model_at_end=watched,
            metric_for_best_model="eval_loss" if watched else None, logging_strategy="steps", logging_steps=max(1, steps_per_epoch // 5),
            logging_nan_inf_filter=False,  # by default a loss that is no number is logged as 0
            restore_callback_states_from_checkpoint=True,  # how long early stopping has been waiting
            prediction_loss_only=True, report_to="none", disable_tqdm=True, seed=run.seed, data_seed=run.seed, optim="adamw_torch_fused",
        )  # fmt: skip
        callbacks = [watcher(run.step)]
        if watched and self.patience:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=self.patience))
        trainer = resumable(answer_trainer())(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(training),
            eval_dataset=Dataset.from_list(validation) if watched else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(keeper(trainer, run.checkpoint_s))
        return trainer


def freeze(model: "PreTrainedModel", layers: int) -> None:
    """Stop gradients at the embedding and the first `layers` decoder layers; 0 freezes nothing.

    Raises TechniqueError if no layer would be left to train.
    """
    if not layers:
        return
    found = getattr(getattr(model, "model", None), "layers", None)
    if found is None or layers >= len(found):
        depth = "no layer list at model.layers" if found is None else f"{len(found)} layers"
        raise TechniqueError(
            "frozen_layers", f"{layers}, and {depth}", "fewer than the model's layers", "frozen_layers=0"
        )
    model.get_input_embeddings().requires_grad_(False)
    for layer in found[:layers]:
        layer.requires_grad_(False)


def answer_loss(hidden: "Tensor", head: "Module", labels: "Tensor", count: "Tensor | int | None" = None) -> "Tensor":
    """Mean cross-entropy of the counted tokens, the head applied to no others.

    hidden: (batch, tokens, width), the last layer's output.  labels: (batch, tokens), IGNORED where nothing counts.
    count: divisor, for batches that are parts of a larger one; None: the tokens counted here.  Returns a float32 scalar,
    0 with a zero gradient when nothing counts.  A small model's head is a fifth of its work, and answers are a quarter of
    the tokens.
    """
    from torch.nn.functional import cross_entropy

    following = labels[:, 1:]
    counted = following != IGNORED
    logits = head(hidden[:, :-1][counted]).float()  # (counted, vocabulary)
    total = cross_entropy(logits, following[counted], reduction="sum")
    return total / (counted.sum().clamp(min=1) if count is None else count)


def answer_trainer() -> type[Any]:
    """TRL's SFTTrainer with `answer_loss`: on a CPU its own fused head scores every token of a conversation, twice."""
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inner = self.accelerator.unwrap_model(model)
            with self.accelerator.autocast():  # accelerate wraps model.forward alone, and we call its parts
                hidden = inner.base_model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
                ).last_hidden_state
                loss = answer_loss(hidden, inner.get_output_embeddings(), inputs["labels"], num_items_in_batch)
            return (loss, {"loss": loss}) if return_outputs else loss

    return AnswerTrainer


def split_groups(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, no phrasing group in both; a share above 0 keeps at least one group.

    Raises DataError if too few rows remain to train on.
    """
    groups = sorted({row.group for row in rows})
    random.Random(seed).shuffle(groups)
    kept = set(groups[: max(1, math.floor(share * len(groups))) if share else 0])
    training = [row for row in rows if row.group not in kept]
    if len(training) < 2:
        raise DataError(
            "traces/train.jsonl",
            f"{len(rows)} rows in {len(groups)} phrasing groups",
            "at least two rows to train on",
            "more data, or distill validation=0",
        )
    return training, [row for row in rows if row.group in kept]


def encode(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[dict[str, Any]]:
    """Token ids and labels of each conversation; labels are IGNORED everywhere but in the final answer.

    Raises DataError naming the rows that are longer than `max_tokens`.
    """
    encoded = []
    long: list[str] = []
    for row in rows:
        ids, spoken = answer_tokens(tokenizer, [message.model_dump() for message in row.messages])
        if len(ids) > max_tokens:
            long.append(f"{row.id} ({len(ids)})")
        encoded.append(
            {"input_ids": ids, "labels": [token if mine else IGNORED for token, mine in zip(ids, spoken, strict=True)]}
        )
    if long:
        raise DataError(
            "traces/train.jsonl",
            f"{len(long)} conversations are too long: {', '.join(long[:5])}",
            f"at most {max_tokens} tokens",
            "raise max_tokens or shorten them",
        )
    return encoded


def use_bfloat16(precision: str, device: str) -> bool:
    """Whether to compute in bfloat16.  auto: only where the hardware multiplies it; elsewhere it is emulated and slower."""
    if precision != "auto":
        return precision == "bfloat16"
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return has_cpu_bfloat16()


def write_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """loss.csv: step, epoch, train_loss, validation_loss; blank where a step has only one of them."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["step", "epoch", "train_loss", "validation_loss"])
        for entry in history:
            if "loss" in entry or "eval_loss" in entry:
                writer.writerow(
                    [entry["step"], round(float(entry["epoch"]), 3), entry.get("loss", ""), entry.get("eval_loss", "")]
                )


def watcher(step: str) -> "TrainerCallback":
    """A callback that moves our progress bar and stops a run whose loss is no longer a number."""
    from contextlib import ExitStack

    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stack = ExitStack()
            self.note = ""
            self.advance = self.stack.enter_context(progress_bar("training", state.max_steps))
            self.advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.advance(1, self.note)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any
        ) -> None:
            loss = (logs or {}).get("loss", (logs or {}).get("eval_loss"))
            if loss is None:
                return
            if not math.isfinite(float(loss)):
                self.stack.close()
                raise TechniqueError(
                    f"steps.{step}.learning_rate",
                    f"the loss is {loss} at step {state.global_step}",
                    "a finite loss",
                    f"a smaller step: steps.{step}.learning_rate={args.learning_rate / 4:g}",
                )
            self.note = f"loss {float(loss):.3f}"

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stack.close()

    return Watcher()
