"""Rounding learned by auto-round, as integers, scales and zero points of compressed-tensors."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.cpu import is_bfloat16_fast
from tasks.shared.errors import TechniqueError
from tasks.shared.model.calibration import batches
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.linear_layers import input_sizes
from tasks.shared.model.loading import place
from tasks.shared.model.widths import shortened
from tasks.shared.progress import no_foreign_bars, progress_bar
from tasks.shared.technique import Compute

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
BLOCK_DONE = "quantized "
"""Beginning of the library's log line about a block that is done."""


@dataclass(frozen=True)
class Tuning:
    """Settings of a tuning by auto-round.

    group: weights that share a scale.  symmetric: no zero points.  learning_rate: 0 for the library's own.
    """

    bits: int
    group: int
    symmetric: bool
    iterations: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Levels:
    """Scales and zero points of a layer, (out, groups).

    Its weights are signed integers less the zero point, times the scale.
    """

    scale: "Tensor"
    zero: "Tensor"


def learn_rounding(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[Sequence[int]],
    tuning: Tuning,
    compute: Compute,
) -> dict[str, Levels]:
    """Round a model's linear layers in place, and return the levels of each by name.

    The model is in float32 afterwards; scales are rounded to bfloat16, as they are stored, and weights are exactly on the levels.
    ids: calibration rows; shorter ones are padded.  The library leaves tokens with the id of the padding out of its loss.
    Raises TechniqueError for a layer that the library left as it was.
    """
    import torch
    from auto_round import AutoRound
    from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig
    from torch.utils.data import DataLoader

    names = list(input_sizes(model))
    config = SignRoundConfig(
        bits=tuning.bits,
        group_size=tuning.group,
        sym=tuning.symmetric,
        iters=tuning.iterations,
        lr=tuning.learning_rate or None,
    )
    padded = next(batches([list(row) for row in ids], len(ids), int(tokenizer.pad_token_id or 0)))
    rows = [{name: values[place : place + 1] for name, values in padded.items()} for place in range(len(ids))]
    loader: Any = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    on_gpu = compute.device != "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if on_gpu else 1)  # as for all calibration (`run_oneshot`)
    try:
        with no_foreign_bars(), quiet_autoround(len(decoder_layers(model))):
            library: Any = AutoRound(
                model,
                tokenizer,
                scheme="W4A16",  # overridden by the configuration
                alg_configs=config,
                dataset=loader,
                seqlen=padded["input_ids"].shape[1],
                nsamples=len(rows),
                batch_size=min(tuning.batch_size, len(rows)),
                device_map=0 if on_gpu else "cpu",
                enable_torch_compile=False,  # slower below hundreds of iterations, and not reproducible
                low_cpu_mem_usage=False,  # it would write the layers to a folder of its own
                amp=on_gpu or is_bfloat16_fast(),
                seed=tuning.seed,
            )
            library.quantize()
    finally:
        torch.set_num_threads(threads)
    place(model.float(), "cpu")
    if missed := [name for name in names if not hasattr(model.get_submodule(name), "scale")]:
        raise TechniqueError(
            "model", f"auto-round left {len(missed)} layers as they were: {shortened(missed)}", "every layer rounded", "quantize/gptq"
        )  # fmt: skip
    return {name: settle_levels(model.get_submodule(name), tuning) for name in names}


def settle_levels(layer: Any, tuning: Tuning) -> Levels:
    """Put a layer's weights exactly on its learned levels, with scales in bfloat16.

    layer: with weight (out, in) and the scale and zp of auto-round: (out, groups), or one zero point for all.
    """
    import torch

    groups = layer.weight.detach().float().unflatten(-1, (-1, tuning.group))  # (out, groups, size)
    learned = layer.scale.float().reshape(groups.shape[:2])
    half = 2 ** (tuning.bits - 1)
    zero = torch.as_tensor(layer.zp, dtype=torch.float32).expand(layer.scale.shape).reshape(groups.shape[:2]) - half
    steps = (groups / learned[..., None]).nan_to_num().round()  # a group of zeros may have a scale of zero
    integers = (steps + zero[..., None]).clamp(-half, half - 1)
    scale = learned.bfloat16().float()
    layer.weight.data = ((integers - zero[..., None]) * scale[..., None]).flatten(1)
    return Levels(scale, zero)


@contextmanager
def levels_kept(model: "PreTrainedModel", levels: Mapping[str, Levels]) -> Iterator[None]:
    """Keep learned levels over a quantization in the block, which takes scales from extremes."""
    yield
    for name, found in levels.items():
        part: Any = model.get_submodule(name)
        part.weight_scale.data = found.scale.to(part.weight_scale.dtype)
        if hasattr(part, "weight_zero_point"):
            part.weight_zero_point.data = found.zero.to(part.weight_zero_point.dtype)


class _Forward(logging.Handler):
    """Forwards the library's warnings to our log, and advances a bar for each block."""

    def __init__(self, advance: Any) -> None:
        super().__init__()
        self.advance = advance

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of the library."""
        message = record.getMessage()
        if message.startswith(BLOCK_DONE):
            self.advance()
        elif record.levelno >= logging.WARNING:
            log.warning("auto-round: %s", message)


@contextmanager
def quiet_autoround(blocks: int) -> Iterator[None]:
    """Show one bar over the blocks instead of auto-round's logs; send its warnings to ours."""
    import warnings

    logger = logging.getLogger("autoround")
    before, propagated = list(logger.handlers), logger.propagate
    with progress_bar("learn rounding", blocks) as advance, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="In CPU autocast")  # float32, as asked
        logger.handlers, logger.propagate = [_Forward(advance)], False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = before, propagated
