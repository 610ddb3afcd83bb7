"""Perplexity without some layers, units or ranks, by criterion, unrecovered.

    python -m bench.structure --text ../shared/data/wikitext2    the embedded model; minutes of processor time
    python -m bench.structure --text ../shared/data/wikitext2 --only budget    prune/budget beside its parts alone

Measures importance on the beginning of valid.txt and perplexity on windows spread over test.txt, each of which is read on its own.
Every row is printed once it is known.
"""

import argparse
import copy
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.tables import console, show
from tasks.prune.budget import Budget
from tasks.prune.cuts.record import as_text, table_of
from tasks.prune.cuts.size import Parameters
from tasks.prune.factoring.record import figures_of
from tasks.prune.flap import Flap
from tasks.prune.heads import Heads
from tasks.prune.hidden import Hidden
from tasks.prune.layer_sharing import LayerSharing, distinct_parameters
from tasks.prune.low_rank import LowRank
from tasks.prune.selection.layers import Reading, choose_layers, free_layers, measure_influence, passed_over
from tasks.prune.selection.losses import text_loss
from tasks.prune.selection.narrowing import Narrowing
from tasks.prune.selection.shape import shape_of
from tasks.prune.selection.sharing import share_layers
from tasks.prune.width import Width
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers

PAD = 0
LAYERS = ("influence", "angular", "first", "last", "random")
UNITS = ("activation", "contribution", "fluctuation", "wanda", "taylor", "magnitude", "random")
COMPENSATED = ("activation", "contribution", "fluctuation", "random")
"""Criteria to try with the mean of what was removed as a bias."""
Build = Callable[[], tuple[Any, int]]
"""Makes a model, and returns it with its number of parameters."""


class Uncorrected(Hidden):
    """Removal of channels without a correction of the norms: a control."""

    def corrected(self, *_: Any) -> dict[str, Any]:
        """Correct nothing."""
        return {}


def windows(file: Path, tokenizer: Any, count: int, length: int, spread: bool) -> list[list[int]]:
    """Windows of a text: its first ones, or evenly spread ones."""
    ids = tokenizer(file.read_text("utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    total = len(ids) // length
    step = total // count if spread else 1
    return [ids[index * step * length : (index * step + 1) * length] for index in range(count)]


def perplexity(model: Any, held: Sequence[list[int]]) -> float:
    """Perplexity over all windows, each read on its own."""
    import torch

    with torch.inference_mode():
        losses = [float(text_loss(model, batch)) for batch in batches(list(held), 4, PAD)]
    return math.exp(sum(losses) / sum(len(window) - 1 for window in held))


def narrowed(model: Any, technique: Narrowing, ids: list[list[int]], seed: int) -> tuple[Any, int]:
    """The model without the technique's units, in its own dtype."""
    small = technique.narrow(model, ids, PAD, seed).model
    return small.to(model.dtype).eval(), small.num_parameters()


def fitted(model: Any, technique: Budget, ids: list[list[int]], folder: Path) -> tuple[Any, int]:
    """The model cut to a budget, in its own dtype; prints what it was chosen from.

    folder: measurements, which rows share.
    """
    parameters = Parameters.of(model, shape_of(model.config))
    levels = technique.levels_of(parameters.before, model.config.model_type)
    bound = technique.bound(parameters, levels)
    meter = technique.meter(model, Reading(ids, technique.batch_size, PAD), 0, folder)
    found = technique.choose(meter, levels, bound)
    console.print(as_text(table_of(found, parameters.after, bound)), highlight=False)
    small: Any = technique.build(meter, found.chosen.cut)
    return small.to(model.dtype).eval(), small.num_parameters()


def budgets(model: Any, ids: list[list[int]], folder: Path) -> Iterator[tuple[str, Build]]:
    """Models within a budget by name: of all kinds of units, and of one kind."""
    for share in (0.85, 0.75):
        for units in (("layers", "neurons", "groups"), ("layers",), ("neurons",)):
            technique = Budget(ratio=round(1 - share, 2), units=units, batch_size=4)
            name = f"budget, {share:.0%}, {' and '.join(units)}"
            yield name, partial(fitted, model, technique, ids, folder)


def factored(model: Any, ids: list[list[int]], settings: Mapping[str, Any]) -> tuple[Any, int]:
    """A copy of the model with matrices of low rank, and its parameters as factors."""
    small = copy.deepcopy(model)
    found = LowRank(**settings).reduce(small, ids, PAD)
    return small, int(figures_of(found, small.num_parameters())["factored_parameters"])


def shared(model: Any, ids: list[list[int]], settings: Mapping[str, Any], seed: int) -> tuple[Any, int]:
    """A copy of the model with shared layers, and its distinct parameters."""
    small, technique = copy.deepcopy(model), LayerSharing(**settings)
    groups, _ = technique.choose(small, Reading(ids, 4, PAD), seed)
    share_layers(list(decoder_layers(small)), groups, technique.method)
    console.print(" ".join("+".join(map(str, group)) for group in groups))
    return small, distinct_parameters(small, groups)


def sharing(given: argparse.Namespace, model: Any, ids: list[list[int]]) -> Iterator[tuple[str, Build]]:
    """Models with shared layers, by name."""
    for count, size in ((2, 2), (4, 2), (6, 2), (3, 3)):
        for criterion in ("angular", "repeat", "random"):
            for method in ("copy_first", "mean"):
                for seed in given.seeds if criterion == "random" else [0]:
                    settings = {"count": count, "size": size, "criterion": criterion, "method": method}
                    label = f"sharing, {count} runs of {size}, {criterion}, {method}"
                    label += f" {seed}" if criterion == "random" else ""
                    yield label, partial(shared, model, ids, settings, seed)


def trials(given: argparse.Namespace, model: Any, ids: list[list[int]]) -> Iterator[tuple[str, Build]]:
    """Models by name, in the order of the table: narrower ones are made when they are asked for."""
    common = {"calibration_rows": len(ids), "max_tokens": given.length, "batch_size": 4}
    families: Mapping[str, tuple[type[Narrowing], Mapping[str, Any]]] = {
        "width, 1152 of 1536 neurons": (Width, {"neurons": 1152}),
        "width, 896 of 1536 neurons": (Width, {"neurons": 896}),
        "hidden, 486 of 576 channels": (Hidden, {"hidden": 486}),
        "hidden, 432 of 576 channels": (Hidden, {"hidden": 432}),
        "hidden, 486 of 576 channels, norms as they were": (Uncorrected, {"hidden": 486}),
        "heads, 2 of 3 groups": (Heads, {"kept": 2}),
        "heads, 2 of 3 queries of each group": (Heads, {"unit": "queries", "kept": 2}),
        "flap, 1152 of 1536 neurons": (Flap, {"ratio": 1 / 4}),
        "flap, 896 of 1536 neurons": (Flap, {"ratio": 5 / 12}),
        "flap, 2 of 3 groups": (Flap, {"units": "groups", "ratio": 1 / 3}),
    }
    for name, (kind, settings) in families.items():
        for criterion in COMPENSATED if kind is Flap else UNITS:
            for seed in given.seeds if criterion == "random" else [0]:
                technique = kind(criterion=criterion, **common, **settings)
                label = f"{name}, {criterion}" + (f" {seed}" if criterion == "random" else "")
                yield label, partial(narrowed, model, technique, ids, seed)
    for ratio in given.ratios:
        for method in ("whitened", "plain"):
            settings = {"method": method, "ratio": ratio}
            yield f"low_rank, ratio {ratio:g}, {method}", partial(factored, model, ids, settings)
    yield from sharing(given, model, ids)


def main() -> None:
    """Print a row per model."""
    import torch

    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.precision import fast_dtype

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with valid.txt and test.txt")
    parser.add_argument("--model", type=Path, help="a folder or GGUF file; default: the embedded model")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=16, help="windows to measure importance on")
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    parser.add_argument("--layers", type=float, default=0.2, help="share of the layers to drop")
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[0.81, 0.684],
        help="of prune/low_rank: 85 and 75 %% of the embedded model",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    given = parser.parse_args()
    from bench.distillation_study import embedded_model

    torch.set_num_threads(1)
    source = given.model or embedded_model()
    model, tokenizer = (
        load_model(source, fast_dtype("cpu")),
        load_tokenizer(source, chat=False),
    )
    ids = windows(given.text / "valid.txt", tokenizer, given.calibration, given.length, spread=False)
    held = windows(given.text / "test.txt", tokenizer, given.windows, given.length, spread=True)
    whole, rows = model.num_parameters(), []

    def add(name: str, tried: Any, parameters: int, started: float) -> None:
        value = perplexity(tried, held)
        rows.append([name, f"{parameters / whole:.1%}", f"{value:.1f}", f"{time.process_time() - started:.0f}"])
        console.print(*rows[-1])

    add("dense", model, whole, time.process_time())
    reading = Reading(ids, 4, PAD)
    layer = sum(parameter.numel() for parameter in decoder_layers(model)[0].parameters())
    if given.only in "depth":
        influence = measure_influence(model, *reading)
        free, count = free_layers(len(influence), given.layers, 1, 1)
        for criterion in LAYERS:
            for seed in given.seeds if criterion == "random" else [0]:
                started = time.process_time()
                dropped, _ = choose_layers(criterion, model, reading, influence, free, count, seed)
                with passed_over(model, dropped):
                    shown = ", ".join(map(str, dropped))
                    add(f"depth, {criterion} ({shown})", model, whole - len(dropped) * layer, started)
    with tempfile.TemporaryDirectory() as folder:
        for name, build in (*trials(given, model, ids), *budgets(model, ids, Path(folder))):
            if given.only in name:
                started = time.process_time()
                add(name, *build(), started)
    show("perplexity without recovery", ("model", "parameters", "perplexity", "CPU s"), rows)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
