"""The one training loop of the stage: a model folder, rows and an objective go in, a model folder and its curve come out."""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.head import core_of
from tasks.distill.training.checkpoints import keeper, last_checkpoint, resumable, train
from tasks.distill.training.encoding import Encoded, collate, split_groups
from tasks.distill.training.lora import adapt, merge
from tasks.distill.training.memory import memory_errors
from tasks.distill.training.objective import Objective
from tasks.distill.training.options import Adapted, Packed
from tasks.distill.training.packing import check_packs, pack
from tasks.distill.training.settings import Training
from tasks.distill.training.terms import warn_without_say
from tasks.distill.training.trainer import objective_trainer
from tasks.distill.training.watch import overfits, runs_away, watcher
from tasks.distill.training.weights import weigh
from tasks.shared.errors import TechniqueError
from tasks.shared.models import has_cpu_bfloat16, load_model, load_tokenizer, save_model
from tasks.shared.rows import Row
from tasks.shared.technique import Metrics, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def train_model(
    settings: Training, source: Path, rows: Sequence[Row], objective: Objective, out: Path, run: StepRun
) -> Metrics:
    """Train a model on conversations and write it: a Hugging Face folder in bfloat16 with loss.csv.

    The last checkpoint stays in scratch until the artifact is in its place: a kill before that costs no training.
    Raises DataError for rows that are too long or too few, TechniqueError when the loss runs away before any epoch was kept,
    MachineError when memory or disk is too small.
    """
    import torch
    from transformers import set_seed

    tokenizer = load_tokenizer(source)
    training, validation = (
        weigh(objective.encode(part, tokenizer, settings.max_tokens), part, settings)
        for part in split_groups(rows, settings.validation, run.seed)
    )
    told: Metrics = {"rows": len(training)}
    torch.set_num_threads(run.threads)
    set_seed(run.seed)
    model = load_model(source, "float32")
    if run.device == "cpu":
        model.set_attn_implementation("eager")  # 15 % faster here: the fused kernel's backward pass is slow on CPUs
    if isinstance(settings, Packed) and settings.packing:
        training, validation = (pack(part, settings.max_tokens) for part in (training, validation))
        check_packs(model, training)
        told["packs"] = len(training)
    model = adapt(model, settings.lora) if isinstance(settings, Adapted) else model
    freeze(core_of(model), settings.frozen_layers)
    with memory_errors(settings, model, run):
        objective.attach(model, run.device)
        trainer = make_trainer(settings, model, tokenizer, training, validation, objective, run)
        train(trainer, last_checkpoint(run.scratch / "checkpoints"))
    history = trainer.state.log_history
    model = trainer.accelerator.unwrap_model(trainer.model)
    objective.detach(model)
    write_curve(out / "loss.csv", history)
    save_model(merge(model), tokenizer, out)
    return {**told, **_figures(trainer, settings), **objective.figures()}


def _figures(trainer: Any, settings: Training) -> Metrics:
    """What the step's table says of a training."""
    history = trainer.state.log_history
    losses = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    finite = [loss for loss in losses if math.isfinite(loss)]
    figures: Metrics = {
        "epochs": round(float(trainer.state.epoch or 0), 2),
        "train_loss": round(
            next((float(entry["loss"]) for entry in reversed(history) if "loss" in entry), math.nan), 4
        ),
        "validation_loss": round(min(finite), 4) if finite else "none",
        "optimizer_steps": trainer.state.global_step,
    }
    if runs_away([entry for entry in history if "loss" in entry]):
        figures["diverged"] = f"kept step {trainer.state.best_global_step}"
    elif overfits(history):
        figures["overfitting"] = f"kept step {trainer.state.best_global_step}"
        log.warning(
            "the validation loss rose again while the training loss fell: the rows are being learnt by heart after step %d, "
            "whose weights are kept; fewer epochs (3 to 5 are usual) or more rows",
            trainer.state.best_global_step,
        )
    elif not losses and settings.epochs > 5:
        log.warning(
            "%g epochs and validation=0: nothing would show rows being learnt by heart; 3 to 5 epochs are usual",
            settings.epochs,
        )
    names = trainer.term_names
    if len(names) > 1 and (silent := warn_without_say(history, names, trainer.objective.knob)):
        figures["without_say"] = ", ".join(silent)
    return figures


def make_trainer(
    settings: Training, model: "PreTrainedModel", tokenizer: Any, training: list[Encoded], validation: list[Encoded],
    objective: Objective, run: StepRun,
) -> Any:  # fmt: skip
    """TRL's trainer with our objective, checkpoints and order of rows."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback
    from trl import SFTConfig

    watched = bool(validation)
    steps_per_epoch = math.ceil(len(training) / (settings.batch_size * settings.accumulation))
    cpu = run.device == "cpu"
    arguments = SFTConfig(
        output_dir=str(run.scratch / "checkpoints"),
        num_train_epochs=settings.epochs, learning_rate=settings.learning_rate, lr_scheduler_type=settings.schedule,
        warmup_steps=int(settings.warmup_ratio * steps_per_epoch * settings.epochs), weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_size, per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation, gradient_checkpointing=settings.gradient_checkpointing,
        max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
        train_sampling_strategy="group_by_length", dataloader_pin_memory=not cpu, use_cpu=cpu,
        bf16=use_bfloat16(settings.precision, run.device),
        eval_strategy="epoch" if watched else "no", save_strategy="epoch", save_total_limit=None, load_best_model_at_end=watched,
        metric_for_best_model="eval_loss" if watched else None, logging_strategy="steps", logging_steps=max(1, steps_per_epoch // 5),
        logging_nan_inf_filter=False,  # by default a loss that is no number is logged as 0
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been waiting
        prediction_loss_only=True, report_to="none", disable_tqdm=True, seed=run.seed, data_seed=run.seed, optim="adamw_torch_fused",
    )  # fmt: skip
    callbacks = [watcher(run.step)]
    if watched and settings.patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = resumable(objective_trainer())(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(validation) if watched else None,
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.objective = objective
    trainer.steps_per_epoch = steps_per_epoch
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


def use_bfloat16(precision: str, device: str) -> bool:
    """Whether to compute in bfloat16.  auto: only where the hardware multiplies it; elsewhere it is emulated and slower."""
    if precision != "auto":
        return precision == "bfloat16"
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return has_cpu_bfloat16()


CURVE = ("step", "epoch", "train_loss", "validation_loss")


def write_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """loss.csv: CURVE, then `<term>_loss` and `<term>_gradient` of each term if there are several; blank where a step has none."""
    logged = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    terms = sorted(
        {name for entry in logged for name in entry if name.endswith(("_loss", "_gradient"))} - {"eval_loss"}
    )
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*CURVE, *terms])
        for entry in logged:
            standard = [
                entry["step"],
                round(float(entry["epoch"]), 3),
                entry.get("loss", ""),
                entry.get("eval_loss", ""),
            ]
            writer.writerow([*standard, *(entry.get(name, "") for name in terms)])
