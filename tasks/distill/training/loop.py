"""The training loop, from model folder, rows and objective to model folder and loss curve."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.distill.training.arguments import casts_weights, training_arguments
from tasks.distill.training.checkpoints import gathered, identity_of, keeper, last_checkpoint, resumable, train
from tasks.distill.training.curve import write_curve
from tasks.distill.training.early import early_keeper, put_back
from tasks.distill.training.gradual import grown_names, zero_grower
from tasks.distill.training.lora import adapt, merge
from tasks.distill.training.masks import mask_adapters, merged, zero_keeper
from tasks.distill.training.memory import memory_errors, module_bytes, trimmer
from tasks.distill.training.objective import Objective
from tasks.distill.training.options import Adapted, Packed
from tasks.distill.training.packing import check_packs, pack
from tasks.distill.training.processes import share_work
from tasks.distill.training.settings import Training
from tasks.distill.training.shared_layers import check_frozen, copy_keeper
from tasks.distill.training.terms import warn_negligible
from tasks.distill.training.trainer import objective_trainer
from tasks.distill.training.validation import split_groups
from tasks.distill.training.watch import overfits, runs_away, watcher
from tasks.distill.training.weights import weigh
from tasks.shared.errors import TechniqueError
from tasks.shared.formats.rows import Row
from tasks.shared.freed_memory import return_memory_at_once
from tasks.shared.model.early import EARLY_FOLDER
from tasks.shared.model.encoding import Encoded, collate, encode_fitting
from tasks.shared.model.families import check_family
from tasks.shared.model.grids import Grid
from tasks.shared.model.head import check_head, core_of
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.loading import load_model, training_tokenizer
from tasks.shared.model.masks import carry_masks, read_masks, write_masks
from tasks.shared.model.saving import align_special_tokens, save_model
from tasks.shared.model.shared_layers import carry_shared, read_shared
from tasks.shared.model.turns import examples
from tasks.shared.technique import Metrics, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def train_model(
    settings: Training, source: Path, rows: Sequence[Row], objective: Objective, out: Path, run: StepRun
) -> Metrics:
    """Train a model and write it as a Hugging Face folder in bfloat16, with loss.csv.

    A model with weights on a grid (`qat`) is written in float32.
    With `run.compute.processes` above 1, each process gets a pickled copy of the arguments (the objective as before `attach`) and
    computes its share of every batch.
    The last checkpoint stays in scratch until the artifact is published, so that a kill before that loses no training.
    Raises DataError for rows that are too long or too few, TechniqueError if the loss diverges before the first epoch ends,
    MachineError if memory or disk is too small.
    """
    check_processes(settings, run)
    if run.compute.processes == 1:
        return _train(settings, source, rows, objective, out, run)
    return share_work(run.compute.processes, run.compute.device, _train, settings, source, rows, objective, out, run)


def check_processes(settings: Training, run: StepRun) -> None:
    """Raise TechniqueError for a batch that processes cannot split, or for what fsdp cannot do."""
    if settings.batch_size % run.compute.processes:
        raise TechniqueError(
            f"steps.{run.step}.batch_size",
            f"{settings.batch_size} conversations for {run.compute.processes} processes",
            "the same number for each process",
            f"steps.{run.step}.batch_size={-(-settings.batch_size // run.compute.processes) * run.compute.processes}, or another runtime.processes",
        )
    if run.compute.sharding == "fsdp" and settings.gradual.sparsity:
        raise TechniqueError(
            f"steps.{run.step}.gradual.sparsity",
            f"{settings.gradual.sparsity:g} with fsdp, where no process has a whole matrix",
            "whole matrices, whose smallest weights go",
            "runtime.sharding=none, or prune/magnitude before this step",
        )
    if run.compute.sharding == "fsdp" and settings.early_step:
        raise TechniqueError(
            f"steps.{run.step}.early_step", f"{settings.early_step} with fsdp, where no process has the whole model",
            "a process with all weights", "runtime.sharding=none",
        )  # fmt: skip
    if run.compute.sharding == "fsdp" and run.compute.device == "cpu":
        raise TechniqueError(
            "runtime.sharding", "fsdp on CPUs", "GPUs, since accelerate cannot shard on CPUs", "runtime.sharding=none"
        )


def check_masks_may_grow(settings: Training, shared: Any, run: StepRun) -> None:
    """Raise TechniqueError for gradual pruning of layers that share their weights.

    shared: record of copied layers; None without any.
    """
    if shared and settings.gradual.sparsity:
        raise TechniqueError(
            f"steps.{run.step}.gradual.sparsity", "layers that share their weights", "a mask for each matrix", "gradual.sparsity=0"
        )  # fmt: skip


def check_grids_have_zero(
    grids: "Mapping[str, Grid]", settings: Training, masked: Collection[str], run: StepRun
) -> None:
    """Raise TechniqueError for masked weights that are to be trained on a grid without a zero.

    grids: by layer.
    """
    without = {f"{name}.weight" for name, grid in grids.items() if grid.name == "iq4_nl"}
    if without and (settings.gradual.sparsity or without & set(masked)):
        raise TechniqueError(
            f"steps.{run.step}.qat.grid",
            "iq4_nl, which has no zero, for a model with masks",
            "a grid with a zero",
            "qat.grid=q4_0",
        )


def _train(
    settings: Training, source: Path, rows: Sequence[Row], objective: Objective, out: Path, run: StepRun
) -> Metrics:
    """Run one process's part of a training; the first process writes and returns the metrics."""
    import torch
    from transformers import set_seed

    masks, shared = read_masks(source), read_shared(source)
    masked = frozenset(masks.tensors) if masks else frozenset()
    check_frozen(shared, settings.frozen_layers, run.step)
    check_masks_may_grow(settings, shared, run)
    tokenizer = training_tokenizer(source)
    sequences = examples(rows, tokenizer, settings.turns, objective.one_turn)
    encoder = partial(objective.encode, tokenizer=tokenizer, max_tokens=settings.max_tokens)
    sequences, encoded = encode_fitting(encoder, sequences, settings.too_long)
    found = {id(row): one for row, one in zip(sequences, encoded, strict=True)}
    training, validation = (
        weigh([found[id(row)] for row in part], part, settings)
        for part in split_groups(sequences, settings.validation, run.seed)
    )
    counts: Metrics = {"rows": len(training)}
    torch.set_num_threads(max(1, run.compute.threads // run.compute.processes))
    set_seed(run.seed)
    if settings.gradient_checkpointing and run.compute.device == "cpu":
        return_memory_at_once()
    model = prepared_model(settings, source, run, masked)
    align_special_tokens(core_of(model), tokenizer)  # before the trainer does it differently
    if isinstance(settings, Packed) and settings.packing:
        training, validation = (pack(part, settings.max_tokens) for part in (training, validation))
        check_packs(core_of(model), training)
        counts["packs"] = len(training)
    grown = grown_names(core_of(model), settings.gradual)
    identity = identity_of(settings, model, [*training, *validation], run)
    with memory_errors(settings, model, run) as seen:
        objective.attach(model, run.compute.device)
        seen.modules = module_bytes(objective)
        trainer = make_trainer(settings, model, tokenizer, training, validation, objective, run)
        trainer.seen, trainer.identity, trainer.shared = seen, identity, shared
        trainer.gradual, trainer.grown = settings.gradual, grown
        trainer.masked = masked | grown
        train(trainer, resume_point(trainer, run.scratch / "checkpoints"))
    history = trainer.state.log_history
    model = whole_model(trainer, lambda: prepared_model(settings, source, run))
    if not trainer.is_world_process_zero():
        return {}
    objective.detach(model)
    check_finite(model, settings, run)
    write_curve(out / "loss.csv", history)
    grids = save_trained(merged(model, masked, merge), tokenizer, settings, out)
    carried = carry_masks(source, out) | carry_shared(source, out)
    if grown:
        pattern = masks.pattern if masks and grown <= masked else ""
        carried["masked_sparsity"] = round(write_masks(out, grown | masked, pattern).sparsity, 4)
    if settings.early_step:
        put_back(model, run.scratch, run.step)
        save_model(model, tokenizer, out / EARLY_FOLDER)
    return {**counts, **_figures(trainer, settings), **objective.figures(), **grids, **carried}


def prepared_model(settings: Training, source: Path, run: StepRun, masked: Collection[str] = ()) -> "PreTrainedModel":
    """Load the model to train, in float32 on the CPU, with adapters and the layers as set.

    masked: names of weights whose zeros stay: adapters leave them alone, and their grid has a zero.
    """
    from tasks.distill.training.rounded_layers import round_layers

    model = load_model(source, "float32")
    check_family(settings, model.config.to_dict(), str(source))
    check_head(model)
    if run.compute.device == "cpu":
        model.set_attn_implementation("eager")  # 15 % faster here: the fused kernel's backward pass is slow on CPUs
    model = adapt(model, settings.lora) if isinstance(settings, Adapted) else model
    mask_adapters(model, masked)
    freeze(core_of(model), settings.frozen_layers)
    check_grids_have_zero(round_layers(core_of(model), settings.qat), settings, masked, run)
    if run.compute.compile:
        for layer in decoder_layers(core_of(model)):
            layer.compile(dynamic=True)  # batches have different lengths
    return model


def resume_point(trainer: Any, folder: Path) -> Path | None:
    """Return the checkpoint from which all processes resume, as chosen by the first one."""
    found = last_checkpoint(folder, trainer.identity) if trainer.is_world_process_zero() else None
    point: Path | None = gathered(trainer, found)[0]
    return point


def whole_model(trainer: Any, prepare: Callable[[], "PreTrainedModel"]) -> "PreTrainedModel":
    """Return the unwrapped trained model, complete in the first process.

    prepare: function that loads the model as it was before training.
    """
    found: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_fsdp_enabled:
        return found
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return found
    whole = prepare()
    whole.load_state_dict({name: state[name] for name in whole.state_dict()})  # without modules that an objective added
    return whole


def check_finite(model: "PreTrainedModel", settings: Training, run: StepRun) -> None:
    """Raise TechniqueError for weights that are not finite.

    Steps after the last logged loss can still diverge.
    """
    import torch

    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise TechniqueError(
            f"steps.{run.step}.learning_rate",
            f"{len(broken)} trained tensors have NaN or infinite values, such as {broken[0]}",
            "finite weights",
            f"a smaller step: steps.{run.step}.learning_rate={settings.learning_rate / 4:g}",
        )


def save_trained(model: "PreTrainedModel", tokenizer: Any, settings: Training, out: Path) -> Metrics:
    """Write the trained model; on a grid, return the size of most layers' groups of weights.

    On a grid, a level times its scale has more digits than bfloat16: the model is written in float32.
    """
    from tasks.distill.training.rounded_layers import rounded_layers, settle

    layers = rounded_layers(model).values()
    settle(model)
    save_model(model, tokenizer, out, "float32" if layers else "bfloat16")
    sizes = Counter(layer.grid.group for layer in layers)
    return {"group_size": sizes.most_common(1)[0][0]} if sizes else {}


def _figures(trainer: Any, settings: Training) -> Metrics:
    """Figures of a training for the step's table."""
    history = trainer.state.log_history
    losses = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    finite = [loss for loss in losses if math.isfinite(loss)]
    figures: Metrics = {
        "epochs": round(float(trainer.state.epoch or 0), 2),
        "train_loss": round(_last_finite(history), 4),
        "validation_loss": round(min(finite), 4) if finite else "none",
        "optimizer_steps": trainer.state.global_step,
    }
    if runs_away([entry for entry in history if "loss" in entry]):
        figures["diverged"] = f"kept step {trainer.state.best_global_step}"
    elif overfits(history):
        figures["overfitting"] = f"kept step {trainer.state.best_global_step}"
        log.warning(
            "overfitting: the validation loss rose after step %d while the training loss fell; the weights of that step are kept; "
            "use fewer epochs (3 to 5 are usual) or more rows",
            trainer.state.best_global_step,
        )
    elif not losses and settings.epochs > 5:
        log.warning(
            "%g epochs and validation=0: overfitting would go unnoticed; 3 to 5 epochs are usual",
            settings.epochs,
        )
    names = trainer.term_names
    if len(names) > 1 and (negligible := warn_negligible(history, names, trainer.objective.knob)):
        figures["negligible_terms"] = ", ".join(negligible)
    return figures


def _last_finite(history: Sequence[Mapping[str, Any]]) -> float:
    """Last finite training loss; NaN if there is none."""
    losses = (float(entry["loss"]) for entry in reversed(history) if "loss" in entry)
    return next((loss for loss in losses if math.isfinite(loss)), math.nan)


def make_trainer(
    settings: Training, model: "PreTrainedModel", tokenizer: Any, training: list[Encoded], validation: list[Encoded],
    objective: Objective, run: StepRun,
) -> Any:  # fmt: skip
    """Return TRL's trainer with our objective, checkpoints and order of rows."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback

    watched = bool(validation)
    steps_per_epoch = math.ceil(len(training) / (settings.batch_size * settings.accumulation))
    callbacks = [watcher(run.step)]
    if watched and settings.patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    arguments = training_arguments(settings, steps_per_epoch, watched, run)
    arguments.use_cache = getattr(
        core_of(model).config, "use_cache", True
    )  # otherwise the saved model would have False
    with router_kept(core_of(model).config.get_text_config()):
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
    trainer.cast = casts_weights(settings, run)
    trainer.steps_per_epoch = steps_per_epoch
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trimmer(run.compute.device))
    trainer.add_callback(zero_grower(trainer))
    trainer.add_callback(zero_keeper(trainer))
    trainer.add_callback(copy_keeper(trainer))
    trainer.add_callback(early_keeper(trainer, settings.early_step, run.scratch, run.step))
    trainer.add_callback(keeper(trainer, run.compute.checkpoint_s))
    return trainer


@contextmanager
def router_kept(config: Any) -> Iterator[None]:
    """Keep the settings of a mixture's router, which TRL changes.

    It turns the router's logits on, with which the saved model could not generate.  They would serve a balancing loss, which our objectives do not have.
    """
    names = ("output_router_logits", "router_aux_loss_coef")
    before = {name: getattr(config, name) for name in names if hasattr(config, name)}
    yield
    for name, value in before.items():
        setattr(config, name, value)


def freeze(model: "PreTrainedModel", layers: int) -> None:
    """Stop gradients at the embedding and the first `layers` decoder layers; 0 freezes nothing.

    Raises TechniqueError if no layer would be left to train.
    """
    if not layers:
        return
    found = decoder_layers(model)
    if layers >= len(found):
        got = f"{layers} of {len(found)} layers"
        raise TechniqueError("frozen_layers", got, "fewer than the model's layers", "frozen_layers=0")
    model.get_input_embeddings().requires_grad_(False)
    for layer in found[:layers]:
        layer.requires_grad_(False)
