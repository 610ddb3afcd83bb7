"""Masks beside llm-compressor by hand: seconds, memory and perplexity; growth with size.

    python -m bench.prune --data ../shared/data/wikitext2 [--calibration 32] [--windows 16] [--model FOLDER] [--patterns 0.5 2:4]
    python -m bench.prune --growth                random models of 16M, 116M and 489M parameters, ours alone

The data is a folder with valid.txt, whose first windows calibrate both sides, and test.txt, whose first windows are measured.  The model is
the embedded 135M model, or a folder.  Each measurement is a process of its own, and both sides take turns.  Seconds are those of pruning alone,
memory is that of the process until it has pruned.  By hand, the model has the type of its files and the library its own choice of threads.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.distillation_study import embedded_model
from bench.patience import Neighbors
from bench.sides import SIDES, child, compared, say_machine
from bench.structure import perplexity, windows
from bench.tables import console, show
from tasks.prune.magnitude import Magnitude
from tasks.prune.masking.archive import archived_bytes
from tasks.prune.sparsegpt import SparseGPT
from tasks.prune.wanda import Wanda
from tasks.shared.engines.memory import peak_memory

WINDOW = 256
"""Tokens of a window, each read without the ones before it."""
TECHNIQUES = {"magnitude": Magnitude, "wanda": Wanda, "sparsegpt": SparseGPT}
MEASURES = ("seconds", "peak", "perplexity", "zeros", "archive")
COLUMNS = ("pruning, s", "peak, GB", "perplexity", "zeros", "archive, MB")
SIZES = {
    "16M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2},
    "116M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "489M": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8},
}  # fmt: skip
VOCABULARY = 16384


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calibration", type=int, default=32, help="windows that calibrate")
    parser.add_argument("--windows", type=int, default=16, help="windows that are measured")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--patterns", nargs="+", default=["0.5", "2:4"], help="sparsities and N:M")
    parser.add_argument("--only", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other busy programs")
    parser.add_argument("--growth", action="store_true", help="random models of several sizes, ours alone")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measured(**json.loads(given.job))))
        return
    with TemporaryDirectory(prefix="prune-") as place:
        folder = Path(place)
        if given.growth:
            columns = ("model", "technique", "parameters", "pruning, s", "peak, GB", "of it weights, GB")
            show(f"growth, {given.calibration} windows", columns, growth(folder, given.only, given.calibration))
        elif given.data is None:
            parser.error("--data is missing")
        else:
            prepare(given.model or embedded_model(), given.data, folder, given.calibration, given.windows)
            unpruned = child("bench.prune", folder=place, technique="", pattern="", side="ours")
            console.print(f"unpruned: perplexity {unpruned['perplexity']:.2f}, archive {unpruned['archive']:.1f} MB")
            neighbors = Neighbors(given.busy)
            title = f"{given.calibration} windows, {given.rounds} rounds, {neighbors}: medians, [smallest, largest]"
            show(
                title,
                ("technique", "side", *COLUMNS),
                rows(place, given.only, given.patterns, given.rounds, neighbors),
            )
    say_machine()


def rows(
    folder: str, techniques: list[str], patterns: list[str], rounds: int, neighbors: Neighbors
) -> Iterator[tuple[str, ...]]:
    """Yield three rows for every technique and pattern: ours, the library's, and the ratio."""
    for pattern in patterns:
        for name in techniques:
            label = f"{name} {pattern}"
            job = {"folder": folder, "technique": name, "pattern": pattern}
            sides = SIDES[:1] if name == "magnitude" and ":" in pattern else SIDES  # no library does it
            for row in compared("bench.prune", job, MEASURES, rounds, neighbors, sides):
                console.print(label, *row)
                yield label, *row
                label = ""


def prepare(source: Path, data: Path, folder: Path, calibration: int, count: int) -> None:
    """Write the model as a folder in bfloat16, and the windows of both texts."""
    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.saving import save_model

    model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
    save_model(model, tokenizer, folder / "model")
    texts = {
        name: windows(data / f"{name}.txt", tokenizer, number, WINDOW, spread=False)
        for name, number in (("valid", calibration), ("test", count))
    }
    (folder / "windows.json").write_text(json.dumps(texts | {"pad": int(tokenizer.pad_token_id or 0)}), "utf-8")
    console.print(f"{calibration * WINDOW} tokens to calibrate on, {count * WINDOW} to measure")


def measured(folder: str, technique: str, pattern: str, side: str) -> dict[str, float]:
    """Prune once; return the figures of MEASURES.

    Peak memory is in GB, the size of the compressed archive in MB, zeros are a share of the pruned matrices.
    """
    from tasks.shared.model.prunable import matrices_of, view_of

    texts = json.loads((Path(folder) / "windows.json").read_text("utf-8"))
    prune = ours if side == "ours" else by_hand
    model, seconds = prune(technique, pattern, Path(folder) / "model", texts["valid"], texts["pad"])
    peak = (peak_memory() or 0) / 1e9
    parts = [view_of(part) for part in matrices_of(model).values()]
    zeros = sum(int((part == 0).sum()) for part in parts) / sum(part.numel() for part in parts)
    figures = {"seconds": seconds, "peak": peak, "zeros": zeros, "archive": archived_bytes(model) / 1e6}
    return figures | {"perplexity": perplexity(model.float(), texts["test"]) if texts["test"] else 0.0}


def ours(technique: str, pattern: str, source: Path, ids: list[list[int]], pad: int) -> tuple[Any, float]:
    """Prune as the step does; return the model and the seconds of pruning."""
    from tasks.shared.model.loading import load_model

    settings: dict[str, Any] = {"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern or 0)}
    model = load_model(source)
    began = time.perf_counter()
    if technique:
        TECHNIQUES[technique](**settings).cut(model, ids, pad)
    return model, time.perf_counter() - began


def by_hand(technique: str, pattern: str, source: Path, ids: list[list[int]], _: int) -> tuple[Any, float]:
    """Call the library as its examples do; return the model and the seconds of its call.

    llm-compressor has magnitude as a schedule of a training only: that one is torch's.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source)
    began = time.perf_counter()
    if technique == "magnitude":
        by_torch(model, float(pattern))
    else:
        by_llmcompressor(model, technique, pattern, ids)
    return model, time.perf_counter() - began


def by_torch(model: Any, sparsity: float) -> None:
    """Set the smallest weights of each matrix in the layers to zero."""
    from torch.nn.utils import prune

    from tasks.shared.model.prunable import matrices_of

    for part in matrices_of(model).values():
        prune.l1_unstructured(part, "weight", sparsity)
        prune.remove(part, "weight")


def by_llmcompressor(model: Any, technique: str, pattern: str, ids: list[list[int]]) -> None:
    """Prune all linear layers but the head."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader

    from tasks.quantize.llm_compressor import unpinned

    # The library makes names that end in a dot: "lm_head" alone would prune the head, and with it the tied embedding.
    settings: dict[str, Any] = {"ignore": ["re:.*lm_head.*"]}
    settings |= {"sparsity": 0.5, "mask_structure": pattern} if ":" in pattern else {"sparsity": float(pattern)}
    recipe: Any = WandaPruningModifier(**settings)
    if technique == "sparsegpt":
        recipe = SparseGPTModifier(**settings, block_size=128, dampening_frac=0.01)
    data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()} for row in ids]
    loader: Any = DataLoader(data, batch_size=None)
    with unpinned():
        oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(data))


def growth(folder: Path, techniques: list[str], count: int) -> Iterator[tuple[str, ...]]:
    """Yield seconds and peak memory of our masks on random models of several sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, sizes in SIZES.items():
        place = folder / name
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes)).bfloat16()
        parameters = model.num_parameters()
        model.save_pretrained(place / "model")
        ids = torch.randint(3, VOCABULARY, (count, WINDOW), generator=torch.Generator().manual_seed(0)).tolist()
        (place / "windows.json").write_text(json.dumps({"valid": ids, "test": [], "pad": 0}), "utf-8")
        del model
        for technique in techniques:
            found = child("bench.prune", folder=str(place), technique=technique, pattern="0.5", side="ours")
            weights = 4 * parameters / 1e9
            yield name, technique, f"{parameters / 1e6:.0f}M", f"{found['seconds']:.1f}", f"{found['peak']:.2f}", f"{weights:.2f}"  # fmt: skip


if __name__ == "__main__":
    main()
