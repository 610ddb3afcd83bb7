"""Gain of 4-bit grids from a model that comes from a 4-bit grid itself.

    python -m bench.grid_origin --model FOLDER --corpus FOLDER [--rows 64] [--seeds 0]

Weights that were read from a Q4_1 file lie on a grid of blocks of 32 inputs, and training moves them by less than a step.  The second
model computes the same: its channels, neurons and values within heads are in a random order, so that each block of 32 mixes weights of
many old blocks, and no grid fits them by descent.  What is better on the first model than on the second is due to the old grid.

The corpus is the folder of a curate step: its calibration split calibrates, test conversations are measured, answers included.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench.sides import say_machine
from bench.tables import console, show
from tasks.prune.selection.copying import axes_of, ending_of
from tasks.prune.selection.shape import Shape, shape_of
from tasks.quantize.gptq import GPTQ
from tasks.quantize.gptq_levels import GptqLevels
from tasks.quantize.rtn import RTN
from tasks.shared.formats.rows import read_rows
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.calibration import calibration_ids
from tasks.shared.model.layout import find_layout
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun

if TYPE_CHECKING:
    from torch import Tensor

GROUP, MAX_TOKENS = 32, 384


def main() -> None:
    """Print a row per technique, and the divergence of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Llama")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64, help="conversations that calibrate")
    parser.add_argument("--checks", type=int, default=24, help="conversations that are measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="orders")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model, chat=False)
    checks = calibration_ids(tokenizer, read_rows(given.corpus / "test.jsonl")[: given.checks], MAX_TOKENS)
    with TemporaryDirectory(prefix="grid-origin-") as place:
        sources = {"as it is": given.model}
        for seed in given.seeds:
            sources[f"shuffled {seed}"] = save_shuffled(given.model, Path(place) / f"shuffled{seed}", seed, checks)
        lines = []
        for name, technique in techniques(given.rows).items():
            found = [divergence(technique, source, given.corpus, checks, Path(place)) for source in sources.values()]
            lines.append((name, *(f"{kl:.4f} ({top:.1%})" for kl, top in found)))
            console.print(*lines[-1])
    show(
        f"KL in nats (same top token) on {sum(map(len, checks))} tokens, groups of {GROUP}",
        ("technique", *sources),
        lines,
    )
    say_machine()


def techniques(rows: int) -> Mapping[str, Any]:
    """Return quantizers of 4 bits by name.

    rows: conversations that calibrate.
    """
    common: dict[str, Any] = {"group_size": GROUP, "check_rows": 1, "max_tokens": MAX_TOKENS}
    feedback = GPTQ(calibration_rows=rows - 1, **common)
    return {
        "rounding, zero points": RTN(**common),
        "rounding, symmetric": RTN(symmetric=True, **common),
        "GPTQ, zero points": feedback,
        "GPTQ, symmetric": replace(feedback, symmetric=True),
        "GPTQ, symmetric, damping 0.3": replace(feedback, symmetric=True, damping=0.3),
        "GPTQ on iq4_nl's levels": GptqLevels(calibration_rows=rows - 1, check_rows=1, max_tokens=MAX_TOKENS),
    }


def save_shuffled(source: Path, out: Path, seed: int, checks: list[list[int]]) -> Path:
    """Write a model that computes the same with its units in another order; return its folder.

    Raises SystemExit if it does not.
    """
    model = load_model(source)
    before = logits_of(model, checks[:2])
    shuffle(model, seed)
    off = max(float((one - two).abs().max()) for one, two in zip(before, logits_of(model, checks[:2]), strict=True))
    if off > 1e-2:
        raise SystemExit(f"{source}: the shuffled model is off by {off:.3g}; wanted: a Llama without head norms")
    console.print(f"order {seed}: logits are within {off:.2g} of the model's")
    save_model(model, load_tokenizer(source, chat=False), out)
    return out


def shuffle(model: Any, seed: int) -> None:
    """Put channels, neurons, and values within each head into a random order, in place."""
    import torch

    draws, shape, layout = torch.Generator().manual_seed(seed), shape_of(model.config), find_layout(model)
    hidden = torch.randperm(shape.hidden, generator=draws)
    orders = [
        {"hidden": hidden, "neurons": torch.randperm(shape.intermediate, generator=draws), **values(shape, draws)}
        for _ in range(shape.layers)
    ]
    done = set[int]()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.data_ptr() in done:  # the head may be the embedding
                continue
            done.add(weight.data_ptr())
            match = layout.layer_weight.fullmatch(name)
            order = orders[int(match[1])] if match else {"hidden": hidden}
            ordered = weight
            for dimension, axis in enumerate(axes_of(name)):
                kind = ending_of(name).split(".")[0] if axis in ("heads", "kv_heads") else axis
                if kind in order:
                    ordered = ordered.index_select(dimension, order[kind])
            weight.copy_(ordered.clone())


def values(shape: Shape, draws: Any) -> "dict[str, Tensor]":
    """Return an order of the values within each head, for their rows and for what reads them."""
    import torch

    size = shape.head_dim
    within = [torch.randperm(size, generator=draws) for _ in range(shape.kv_heads)]
    rows = torch.cat([head * size + order for head, order in enumerate(within)])
    columns = torch.cat([head * size + within[head // shape.group] for head in range(shape.heads)])
    return {"v_proj": rows, "o_proj": columns}


def divergence(technique: Any, source: Path, corpus: Path, checks: list[list[int]], place: Path) -> tuple[float, float]:
    """Quantize a model; return its divergence in nats, and the share of equal top tokens."""
    inputs = {
        "model": (Artifact("model", Kind.MODEL, source),),
        "calibration": (Artifact("corpus", Kind.CORPUS, corpus),),
    }
    with TemporaryDirectory(dir=place) as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        technique(Inputs(inputs), out, StepRun("grid", 0, scratch))
        found = compare_logits(load_model(out), logits_of(load_model(source), checks), checks, str(out))
    return float(found["kl_to_source"]), float(found["same_top_token"])


if __name__ == "__main__":
    main()
