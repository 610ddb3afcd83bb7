"""Pruning of a model by masks, from its folder to that of the pruned one."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.prune.masking.archive import archived_bytes
from tasks.prune.masking.settings import Masking
from tasks.shared.errors import TechniqueError
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.calibration import batches, calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family
from tasks.shared.model.layer_walk import walk_layers
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.masks import write_masks
from tasks.shared.model.prunable import matrices_of, view_of
from tasks.shared.model.widths import shortened
from tasks.shared.progress import track
from tasks.shared.technique import Inputs, Metrics, StepRun

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
BATCH = 8
"""Conversations per forward pass.  Padding does not count, so another number moves rounding errors only."""
Rows = list[list[int]]
"""Token ids of calibration rows."""
Prune = Callable[["PreTrainedModel", Rows, int], Any]
"""(model, calibration rows, padding token): sets weights of `matrices_of` to zero in place."""


def prune(settings: Masking, inputs: Inputs, out: "Path", run: StepRun, cut: Prune, calibration: int = 0) -> Metrics:
    """Write the pruned model to `out`, an ordinary checkpoint, and the record of its masks.

    calibration: number of calibration conversations; 0 for a technique that needs none.
    Returns sparsity (share of zeros in the pruned matrices), pruned_matrices, zeros, parameters, size_bytes, archive_bytes and
    source_archive_bytes (the weights in bfloat16, compressed) and, if a corpus is given, the figures of `compare_logits`.
    Raises TechniqueError for a model that is quantized or of a family that `settings` refuses, and for a matrix left without a weight.
    """
    import torch

    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.saving import save_model
    from tasks.shared.model.sizes import weight_bytes

    torch.set_num_threads(run.compute.threads)
    source, corpus = inputs.one("model").path, inputs.get("calibration")
    check_dense(source)
    rows, held_out = split_calibration(corpus.path, calibration, settings.check_rows) if corpus else ([], [])
    model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
    check_family(settings, model.config.to_dict(), str(source))
    matrices = matrices_of(model)
    settings.check_widths({name: view_of(part).shape[1] for name, part in matrices.items()})
    ids, checks = (calibration_ids(tokenizer, part, settings.max_tokens) for part in (rows, held_out))
    if calibration:
        warn_few_tokens(sum(map(len, ids)), matrices)
    source_logits, source_archive = logits_of(model, checks), archived_bytes(model)
    cut(model, ids, int(tokenizer.pad_token_id or 0))
    check_left(matrices)
    archive, names = archived_bytes(model), [f"{name}.weight" for name in matrices]
    parameters = model.num_parameters()
    save_model(model, tokenizer, out)
    del model, matrices
    masks = write_masks(out, names, settings.pattern)
    size = weight_bytes(out)
    log.info(
        "%.1f %% of the weights in %d matrices are zero.  The file is as large as before (%.1f MB) and computes no faster: zeros save "
        "room only in a compressed archive (%.1f MB, of the unpruned weights %.1f MB), and time only in a runtime that skips them",
        100 * masks.sparsity, len(names), size / 1e6, archive / 1e6, source_archive / 1e6,
    )  # fmt: skip
    figures: Metrics = {
        "sparsity": masks.sparsity, "pruned_matrices": len(names), "zeros": sum(mask.zeros for mask in masks.tensors.values()),
        "parameters": parameters, "size_bytes": size, "archive_bytes": archive, "source_archive_bytes": source_archive,
    }  # fmt: skip
    measured = compare_logits(load_model(out), source_logits, checks, str(out)) if checks else {}
    return figures | ({"calibration_tokens": sum(map(len, ids))} if calibration else {}) | measured


def prune_by_layer(
    model: "PreTrainedModel", ids: Rows, pad_id: int,
    reduce: "Callable[[Tensor, Tensor], Tensor]", prune_matrices: "Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]",
) -> None:  # fmt: skip
    """Prune one decoder layer after the other; each sees what the pruned ones before it give.

    reduce: statistic of a matrix's inputs, as in `tasks.shared.model.input_statistics`.
    prune_matrices: (weights of a layer by name, each (out, in), and their statistics) -> changes the weights in place.
    """
    matrices = matrices_of(model)
    visits = walk_layers(model, batches(ids, BATCH, pad_id))
    for visit in track(visits, "pruning", len(decoder_layers(model))):
        own = {id(part) for part in visit.layer.modules()}
        parts = {name: part for name, part in matrices.items() if id(part) in own}
        sums = visit.input_sums(parts, reduce)
        if silent := sorted(parts.keys() - sums.keys()):
            raise TechniqueError(
                type(model).__name__, f"no calibration token reaches {shortened(silent)}", "matrices that every token passes",
                "prune/magnitude, which needs no calibration",
            )  # fmt: skip
        prune_matrices({name: view_of(part) for name, part in parts.items()}, sums)


def warn_few_tokens(tokens: int, matrices: Mapping[str, "Module"]) -> None:
    """Warn if there are fewer calibration tokens than the widest matrix has inputs."""
    widest = max(view_of(part).shape[1] for part in matrices.values())
    if tokens < widest:
        log.warning(
            "%d calibration tokens for matrices of up to %d inputs: the statistics cannot tell all inputs apart; about %d times as many "
            "calibration rows are needed for two tokens per input",
            tokens, widest, -(-2 * widest // max(1, tokens)),
        )  # fmt: skip


def check_left(matrices: Mapping[str, "Module"]) -> None:
    """Raise TechniqueError for matrices of which nothing is left, or that are not finite."""
    import torch

    weights = {name: view_of(part) for name, part in matrices.items()}
    if empty := [name for name, weight in weights.items() if not bool(weight.any())]:
        raise TechniqueError(
            "sparsity", f"nothing is left of {shortened(empty)}", "weights in every matrix", "a lower sparsity, or scope=matrix"
        )  # fmt: skip
    if broken := [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]:
        raise TechniqueError(
            "calibration", f"the weights of {shortened(broken)} are not finite after pruning", "finite weights",
            "larger damping, or more calibration rows",
        )  # fmt: skip
