"""Another value for every setting that all training techniques share (tasks/distill/training/settings.py)."""

from tests.settings_case import Change

LORA = {"lora.rank": 4}
ROUNDED = {"qat.grid": "int4_symmetric"}
PRUNED = {"gradual.sparsity": 0.5, "gradual.every": 1}
TRAINING_CHANGES: dict[str, Change] = {
    "epochs": Change(2),
    "learning_rate": Change(1e-3),
    "schedule": Change("linear"),
    "warmup_ratio": Change(0.5),
    "weight_decay": Change(0.5),
    "batch_size": Change(3),
    "accumulation": Change(2),
    "max_tokens": Change(16, refused="too long"),
    "too_long": Change("stop", {"max_tokens": 72, "too_long": "drop"}, refused="too long"),
    "turns": Change("last"),
    "validation": Change(0.4),
    "patience": Change(
        1, {"epochs": 6, "learning_rate": 0.5, "schedule": "constant_with_warmup", "patience": 0}
    ),  # it rises
    "precision": Change("bfloat16"),
    "frozen_layers": Change(1),
    "gradient_checkpointing": Change(True),
    "qat.grid": Change("int4_symmetric"),
    "qat.group_size": Change(32, ROUNDED),
    "early_step": Change(1),
    "gradual.sparsity": Change(0.5),
    "gradual.begin": Change(0.5, PRUNED),
    "gradual.end": Change(0.95, PRUNED),
    "gradual.every": Change(2, PRUNED),
    "qat.scales": Change("learned", ROUNDED),
}
OPTION_CHANGES: dict[str, Change] = {
    "packing": Change(True),
    "teacher_weight": Change(3.0),
    "gold_weight": Change(3.0),
    "lora.rank": Change(4),
    "lora.alpha": Change(8, LORA),
    "lora.dropout": Change(0.5, LORA),
    "lora.targets": Change(["q_proj", "down_proj"], LORA),
}
"""Of the options (tasks/distill/training/options.py); rows of both sources are needed."""
LORA_CHANGES = {name: change for name, change in OPTION_CHANGES.items() if name.startswith("lora.")}
