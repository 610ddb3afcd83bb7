"""KL divergence of mixed and of single GGUF types from their source, at equal bytes.

    python -m bench.mixed --text ../shared/data/wikitext2    the embedded model; minutes of processor time

Importance and sensitivity are measured on the beginning of valid.txt, the divergences of the table on windows spread over test.txt.
Weights are rounded as the file's are; transformers computes with them.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.structure import windows
from bench.tables import console, show
from tasks.export.budget import choose_types
from tasks.export.importance import input_energy
from tasks.export.mixed_gguf import MEASURED_FILE, MixedGguf, measure
from tasks.export.sensitivity import Group, Meter, group_tensors
from tasks.export.source import dense_folder
from tasks.shared.gguf.writer import plan_tensors

SINGLE = (
    ("q4_0", "q4_0"),
    ("iq4_nl", "iq4_nl"),
    ("q4_0", "q8_0"),
    ("iq4_nl", "q8_0"),
    ("q5_0", "q5_0"),
    ("q5_0", "q8_0"),
)
"""Type of the layers, and of embedding and head."""


def size_of(groups: Sequence[Group], types: Mapping[str, str]) -> int:
    """Bytes of all matrices."""
    return sum(group.sizes([types[group.name]])[types[group.name]] for group in groups)


def candidates(
    groups: Sequence[Group], losses: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and types by group: single types, and the mix within the bytes of each."""
    sizes = {group.name: group.sizes(list(losses[group.name])) for group in groups}
    known: set[int] = set()
    for layers, outer in SINGLE:
        types = {group.name: outer if group.places[0][0] < 0 else layers for group in groups}
        yield layers if layers == outer else f"{layers}, embedding {outer}", types
        if (total := size_of(groups, types)) not in known:
            yield "mixed", choose_types(sizes, losses, total)
        known.add(total)


def main() -> None:
    """Print a row per choice of types."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder or GGUF file; default: the embedded model")
    parser.add_argument("--text", type=Path, required=True, help="folder with valid.txt and test.txt")
    parser.add_argument("--calibration", type=int, default=8, help="windows to calibrate on")
    parser.add_argument("--windows", type=int, default=16, help="windows to measure on")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--sections", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    import torch

    from bench.distillation_study import embedded_model
    from tasks.shared.model.loading import load_model, load_tokenizer

    torch.set_num_threads(given.threads)
    with TemporaryDirectory() as scratch:
        folder = dense_folder(given.model or embedded_model(), Path(scratch))
        model, tokenizer = load_model(folder), load_tokenizer(folder, chat=False)
        read = partial(windows, tokenizer=tokenizer, length=given.length)
        ids = read(given.text / "valid.txt", count=given.calibration, spread=False)
        held = read(given.text / "test.txt", count=given.windows, spread=True)
        groups = group_tensors(plan_tensors(folder, "f32"), given.sections)
        importance = input_energy(model, ids)
        start, settings = time.monotonic(), MixedGguf()
        calibrated = Meter(model, groups, ids, importance)
        losses = measure(calibrated.divergence, settings.sizes(groups), Path(scratch) / MEASURED_FILE)
        console.print(f"{sum(map(len, losses.values()))} measurements in {time.monotonic() - start:.0f} s")
        fresh, weights, rows = Meter(model, groups, held, importance), sum(group.weights for group in groups), []
        for name, types in candidates(groups, losses):
            total = size_of(groups, types)
            figures = [calibrated.divergence(types), fresh.divergence(types)]
            rows.append(
                [name, f"{total / 1e6:.2f}", f"{total * 8 / weights:.2f}", *(f"{figure:.4f}" for figure in figures)]
            )
            console.print(*rows[-1], *(f"{group} {kind};" for group, kind in types.items() if name == "mixed"))
    show("KL to the source, nats a token", ["types", "MB", "bits", "calibration text", "other text"], rows)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
