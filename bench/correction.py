"""KL of 4-bit weights with and without a low-rank correction of their error, in one run.

    python -m bench.correction --model FOLDER --corpus FOLDER [--ranks 0 8 16] [--rows 32] [--checks 24]

The correction is what an adapter (LoRA) on the rounded model would add: the product of two thin matrices that is closest to the error of
each matrix's outputs on the calibration rows (LQER, Zhang et al. 2024, arXiv 2402.02446; QERA, Zhang et al. 2024, arXiv 2410.06040).  The
corpus is the folder of a curate step: its calibration split calibrates, test conversations are measured, answers included.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.tables import console, show
from tasks.prune.factoring.decomposition import decompose, reduced
from tasks.quantize.error_feedback import fitted_scales, rounded_to, with_feedback
from tasks.quantize.gptq_levels import GptqLevels
from tasks.shared.formats.rows import read_rows
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.calibration import calibration_ids
from tasks.shared.model.input_statistics import input_factor
from tasks.shared.model.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 384
DAMPING = 0.01
FACTOR_BYTES = 2
"""Of a weight of the two factors."""


@dataclass(frozen=True, kw_only=True)
class Corrected(GptqLevels):
    """Levels with or without error feedback, and the best correction of a rank on top.

    rank: 0 for none.  feedback: GPTQ's.  whitened: closest in the outputs; otherwise in the weights.
    """

    rank: int = 0
    feedback: bool = True
    whitened: bool = True

    def round_matrix(self, weight: "Tensor", products: "Tensor", order: "Tensor", factor: "Tensor") -> dict[str, float]:
        """Round one matrix in place and add the correction."""
        before = weight.float().clone()
        scale, low = fitted_scales(before, products.diagonal(), self.weight_grid)
        found = rounded_to(before, scale, low, self.weight_grid)
        if self.feedback:
            found = with_feedback(before, order, factor, scale, low, self.weight_grid)
        if self.rank:
            error = before - found
            directions, _ = decompose(error, input_factor(products, DAMPING) if self.whitened else None)
            found = found + reduced(error, directions, self.rank).float()
        weight.copy_(found)
        return {"outputs": 0.0, "feedback": 0.0, "rounding": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 8, 16])
    parser.add_argument("--rows", type=int, default=32, help="conversations that calibrate")
    parser.add_argument("--checks", type=int, default=24, help="conversations that are measured")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model, chat=False)
    ids, checks = (
        calibration_ids(tokenizer, read_rows(given.corpus / f"{split}.jsonl")[:count], MAX_TOKENS)
        for split, count in (("calibration", given.rows), ("test", given.checks))
    )
    dense = load_model(given.model)
    shapes = [tuple(part.weight.shape) for part in dense.model.layers.modules() if type(part).__name__ == "Linear"]
    wanted = logits_of(dense, checks)
    del dense
    console.print(f"{sum(map(len, ids))} tokens to calibrate on, {sum(map(len, checks))} to measure")
    lines = []
    for label, technique in variants(given.ranks):
        model: Any = load_model(given.model)
        technique.round(model, ids, int(tokenizer.pad_token_id or 0))
        found = compare_logits(model, wanted, checks, label)
        added = sum(FACTOR_BYTES * technique.rank * sum(shape) for shape in shapes)
        lines.append(
            (label, f"{added / 1e6:.1f}", f"{found['kl_to_source']:.4f}", f"{100 * float(found['same_top_token']):.1f}")
        )
        console.print(*lines[-1])
        del model
    show("corrections", ("weights", "added, MB", "KL, nats", "same top token, %"), lines)


def variants(ranks: list[int]) -> Iterator[tuple[str, Corrected]]:
    """Each kind of rounding at each rank."""
    for feedback in (False, True):
        for rank in ranks:
            for whitened in (True, False) if rank and not feedback else (True,):
                name = "error feedback" if feedback else "rounded"
                kind = ("" if not rank else f", rank {rank}") + ("" if whitened else ", plain")
                yield f"iq4_nl, {name}{kind}", Corrected(rank=rank, feedback=feedback, whitened=whitened)


if __name__ == "__main__":
    main()
