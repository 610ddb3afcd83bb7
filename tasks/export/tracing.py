"""Example inputs with a filled key-value cache, to trace a model with."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH, BEFORE, NEW = 2, 5, 3
"""Sizes of the sample: sequences, tokens in the cache, and tokens to read.  An axis of one would become fixed."""
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "transformers.exporters")
"""Loggers of the exporters, whose warnings are about operators that no language model uses."""


def sample_inputs(model: "PreTrainedModel") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return example arguments of a pass with a filled cache, and their axes that vary."""
    import torch
    from transformers import DynamicCache

    running: Any = model
    cache = DynamicCache()  # without a configuration: each layer keeps all tokens
    with torch.inference_mode(False), torch.no_grad():
        running(input_ids=torch.zeros(BATCH, BEFORE, dtype=torch.long), past_key_values=cache)
    total = BEFORE + NEW
    samples = {
        "input_ids": torch.zeros(BATCH, NEW, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, total, dtype=torch.long),
        "position_ids": torch.arange(BEFORE, total)[None].repeat(BATCH, 1),
        "past_key_values": cache,
        "logits_to_keep": torch.arange(NEW - 1),
    }
    varies = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: varies, 1: varies} for name in ("input_ids", "attention_mask", "position_ids")}
    shapes |= {"past_key_values": [{0: varies, 2: varies}] * (2 * len(cache.layers)), "logits_to_keep": {0: varies}}
    return samples, shapes


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter from printing its progress and warning of what it skips."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def untraceable(model: "PreTrainedModel", error: Exception, option: str) -> TechniqueError:
    """Return the error for a model that an exporter cannot trace.

    option: the export, as its file in conf/ is called.
    """
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return TechniqueError(
        type(model).__name__,
        f"transformers' exporter cannot trace it: {cause}",
        f"a model that docs/families.md lists for {option}",
        "export/gguf",
    )
