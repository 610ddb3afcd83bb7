"""Loss of tiny mixtures without some experts, by criterion, unrecovered.

    python -m bench.experts --text ../shared/data/wikitext2    two mixtures of bytes, three seeds; 10 minutes of processor time

Trains a mixture on the bytes of valid.txt, measures its experts on 8,192 of them, and removes experts.  The loss is that of the first
16,384 bytes of test.txt, in windows of 128, in nats per byte.  Every row is printed once it is known.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.tables import console, show
from tasks.prune.experts import Experts
from tasks.prune.selection.mixtures import find_mixtures, keep_experts
from tasks.prune.selection.picks import highest
from tasks.prune.selection.routing import CRITERIA, ExpertCriterion
from tasks.shared.mixtures import expert_count

LENGTH, BATCH, RATE, PER_TOKEN = 128, 16, 3e-3, 2
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 260, "max_position_embeddings": 256,
    "num_experts_per_tok": PER_TOKEN, "intermediate_size": 64, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "router_aux_loss_coef": 0.001, "output_router_logits": True,
}  # fmt: skip
MIXTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 8}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 16, "moe_intermediate_size": 32, "norm_topk_prob": False, "head_dim": 16}),
}  # fmt: skip
"""Gate weights of the chosen experts add up to 1 in the first, not in the second."""
REMOVED = (0.25, 0.5, 0.75)
DRAWS = (0, 1, 2)
"""Seeds of the random control."""


def byte_ids(file: Path) -> Any:
    """Token ids of a text's bytes, (bytes,), int64; 0 to 2 are special."""
    import torch

    return torch.tensor([byte + 3 for byte in file.read_bytes()[:2_000_000]])


def trained(name: str, text: Any, steps: int, seed: int) -> Any:
    """A mixture after some steps on random windows of a text.

    text: (bytes,), int64.
    """
    import torch
    import transformers

    title, settings = MIXTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, title)(**SHAPE, **settings)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=RATE), torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=generator)
        batch = torch.stack([text[start : start + LENGTH] for start in starts])
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps) + 1e-4
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.config.output_router_logits = False
    return model.eval()


def loss_of(model: Any, held: Any) -> float:
    """Mean loss in nats per byte.

    held: (windows, length), int64.
    """
    import torch

    model.eval().config.output_router_logits = False  # its loss would count the balance of the experts as well
    with torch.no_grad():
        parts = [float(model(part, labels=part).loss) for part in held.split(32)]
    return sum(parts) / len(parts)


def without(model: Any, criterion: ExpertCriterion, ratio: float, text: Sequence[list[int]], draw: int) -> Any:
    """The model without a share of its experts."""
    technique, mixtures = Experts(criterion=criterion, ratio=ratio), find_mixtures(model)
    routings = technique.measure(model, mixtures, list(text) if technique.passes else [], 0, draw)
    count = technique.count(expert_count(model.config.to_dict()), PER_TOKEN)
    return keep_experts(
        model, {layer: highest(CRITERIA[criterion](routing), count) for layer, routing in routings.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with valid.txt and test.txt")
    parser.add_argument("--steps", type=int, default=300, help="steps of training, 16 windows each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the weights before training")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    text, test = byte_ids(options.text / "valid.txt"), byte_ids(options.text / "test.txt")
    held = test[: 128 * LENGTH].view(128, LENGTH)
    calibration = [text[start : start + LENGTH].tolist() for start in range(0, 64 * 999, 999)]
    runs: list[tuple[ExpertCriterion, int]] = [(name, 0) for name in CRITERIA if name != "random"]
    runs += [("random", draw) for draw in DRAWS]
    rows = []
    for name in MIXTURES:
        for seed in options.seeds:
            model = trained(name, text, options.steps, seed)
            whole = loss_of(model, held)
            for ratio in REMOVED:
                losses = [f"{loss_of(without(model, criterion, ratio, calibration, draw), held):.3f}" for criterion, draw in runs]  # fmt: skip
                rows.append([name, str(seed), f"{ratio:.0%}", f"{whole:.3f}", *losses])
                console.print(*rows[-1])
    show("nats per byte", ["mixture", "seed", "removed", "whole", *(criterion for criterion, _ in runs)], rows)


if __name__ == "__main__":
    main()
