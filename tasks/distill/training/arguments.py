"""Translation of settings to the trainer's arguments."""

import math
from typing import Any

from tasks.distill.training.settings import Training
from tasks.shared.errors import MachineError
from tasks.shared.model.precision import fast_dtype
from tasks.shared.technique import StepRun

DECAY_SHARE = 0.2
"""Share of the steps over which warmup_stable_decay decays."""


def training_arguments(settings: Training, steps_per_epoch: int, watched: bool, run: StepRun) -> Any:
    """Return TRL's arguments.  watched: True if there are validation rows."""
    from trl import SFTConfig

    cpu = run.compute.device == "cpu"
    steps = math.ceil(steps_per_epoch * settings.epochs)
    warmup = int(settings.warmup_ratio * steps_per_epoch * settings.epochs)
    each = settings.batch_size // run.compute.processes
    arithmetic = precision_of(settings.precision, run.compute.device)
    spread: dict[str, Any] = {}
    if run.compute.processes > 1:
        spread = {"ddp_find_unused_parameters": False, "ddp_backend": "gloo" if cpu else "nccl"}
        if run.compute.sharding == "fsdp":
            spread |= {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    arguments = SFTConfig(
        output_dir=str(run.scratch / "checkpoints"),
        num_train_epochs=settings.epochs, learning_rate=settings.learning_rate, lr_scheduler_type=settings.schedule,
        lr_scheduler_kwargs=schedule_options(settings.schedule, steps - warmup), warmup_steps=warmup, weight_decay=settings.weight_decay,
        per_device_train_batch_size=each, per_device_eval_batch_size=each,
        gradient_accumulation_steps=settings.accumulation, gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # reentrant checkpoints pass no gradient through frozen layers
        max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
        train_sampling_strategy="group_by_length", dataloader_pin_memory=not cpu, use_cpu=cpu,
        bf16=arithmetic == "bfloat16", fp16=arithmetic == "float16",
        average_tokens_across_devices=True,  # counts of a step cover all processes
        eval_strategy="epoch" if watched else "no", save_strategy="epoch", save_total_limit=None, load_best_model_at_end=watched,
        metric_for_best_model="eval_loss" if watched else None, logging_strategy="steps", logging_steps=max(1, steps_per_epoch // 5),
        logging_nan_inf_filter=False,  # by default a NaN loss is logged as 0
        restore_callback_states_from_checkpoint=True,  # patience used up by early stopping
        prediction_loss_only=True, report_to="none", disable_tqdm=True, seed=run.seed, data_seed=run.seed, optim="adamw_torch_fused",
        **spread,
    )  # fmt: skip
    if "fsdp" in spread:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # As in a single process: the weights are cast, if at all, and gradients are added up in float32; autocast does the rest
        cast = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if casts_weights(settings, run) else {}
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(**cast, cast_forward_inputs=False)
    return arguments


def casts_weights(settings: Training, run: StepRun) -> bool:
    """Return True if passes compute with bfloat16 copies of the weights (`working_copy`).

    Not with gradient checkpointing, which reads the weights again in the backward pass, when the copies are gone; nor with compiled
    layers, which would be compiled anew for the copies; nor with fsdp where layers round their weights, since it casts these too.
    """
    if run.compute.sharding == "fsdp" and settings.weight_grid is not None:
        return False
    arithmetic = precision_of(settings.precision, run.compute.device)
    return arithmetic == "bfloat16" and not settings.gradient_checkpointing and not run.compute.compile


def schedule_options(schedule: str, steps: int) -> dict[str, Any]:
    """Return the options of a schedule besides its warm-up.

    steps: optimizer steps after the warm-up.
    """
    if schedule != "warmup_stable_decay":
        return {}
    return {"num_decay_steps": max(1, int(DECAY_SHARE * steps)), "decay_type": "1-sqrt"}


def precision_of(wanted: str, device: str) -> str:
    """Return the precision to train in: float32, bfloat16 or float16.

    "auto" means bfloat16 where the hardware is faster in it than in float32, else float32.

    Raises MachineError for float16 on a CPU.
    """
    if wanted == "float16" and device == "cpu":
        raise MachineError("precision", "float16 on a CPU", "a GPU", "precision=auto")
    if wanted != "auto":
        return wanted
    return fast_dtype(device)
