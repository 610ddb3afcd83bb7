"""Depth pruning: remove the decoder layers with the least block influence.

Source: ShortGPT, Men et al. 2024, arXiv 2403.03853.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.activations import collect
from tasks.shared.model.calibration import batches, calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family, has_parts
from tasks.shared.model.layout import (
    LAYER_LISTS,
    check_rebuilt,
    decoder_layers,
    find_layout,
    kept_layers_config,
    layer_count,
)
from tasks.shared.model.masks import carry_masks
from tasks.shared.progress import track
from tasks.shared.technique import Inputs, Kind, Metrics, Plot, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
UNKNOWN = "unknown"
"""Per-layer setting of a layer that is not chosen yet."""


def block_influence(hidden_in: "Tensor", hidden_out: "Tensor", mask: "Tensor") -> "Tensor":
    """Block influence of a layer: 1 - cosine similarity of input and output, summed over tokens.

    hidden_in, hidden_out: (batch, length, hidden), any float dtype.  mask: (batch, length), 1 on real tokens.
    Returns a float64 scalar >= 0; divide the sum over batches by the number of real tokens for the mean of
    Men et al. 2024, section 3.1 (equation 1).  A layer that only rescales its input has influence 0.
    """
    from torch.nn.functional import cosine_similarity

    similarity = cosine_similarity(hidden_in.double(), hidden_out.double(), dim=-1)  # (batch, length)
    return ((1.0 - similarity) * mask).sum().clamp(min=0.0)


def choose_layers(influence: Sequence[float], ratio: float, protect_first: int = 0, protect_last: int = 0) -> list[int]:
    """Choose the layers to drop: round(ratio * layers) of them, lowest influence first.

    Of layers with equal influence, the later one goes first.

    Raises TechniqueError if that is every layer, or more than the protected ends leave.
    """
    total = len(influence)
    count = round(ratio * total)
    if count >= total:
        raise TechniqueError(
            "ratio",
            f"{ratio} would drop all {total} layers",
            "at least one layer kept",
            f"ratio={(total - 1) / total:.2f} or less",
        )
    free = range(protect_first, total - protect_last)
    if count > len(free):
        raise TechniqueError(
            "ratio",
            f"{ratio} asks for {count} of {total} layers, but the protected ends leave {len(free)}",
            f"protect_first + protect_last <= {total - count}",
            f"ratio={len(free) / total:.2f} or less, or protect fewer layers",
        )
    return sorted(sorted(free, key=lambda index: (influence[index], -index))[:count])


def check_layers(layers: Sequence[int], total: int) -> list[int]:
    """Return explicit layer indices in ascending order.

    Raises TechniqueError for an index outside the model, a repeated index, or a list that names every layer.
    """
    outside = sorted(index for index in set(layers) if not 0 <= index < total)
    if outside:
        raise TechniqueError("layers", f"no layer {', '.join(map(str, outside))} in this model", f"0 to {total - 1}")
    if len(set(layers)) != len(layers):
        raise TechniqueError("layers", f"an index is listed twice in {list(layers)}", "every layer once")
    if len(layers) == total:
        raise TechniqueError("layers", f"all {total} layers named", "at least one layer kept")
    return sorted(layers)


def drop_layers(model: "PreTrainedModel", dropped: Sequence[int]) -> None:
    """Remove layers in place, and update the configuration and the cache indices to match.

    Raises TechniqueError if the configuration cannot describe the layers that remain.
    """
    layers = decoder_layers(model)
    kept = [index for index in range(len(layers)) if index not in set(dropped)]
    config: Any = model.config
    for name, value in kept_layers_config(config.to_dict(), kept).items():
        setattr(config, name, value)
    find_layout(model).put_layers(model, [layers[index] for index in kept])
    check_rebuilt(model)


def measure_influence(model: "PreTrainedModel", ids: list[list[int]], batch_size: int, pad_id: int) -> list[float]:
    """Mean block influence of every decoder layer over the tokens of `ids`, without padding."""
    passes = track(batches(ids, batch_size, pad_id), "block influence", -(-len(ids) // batch_size))
    sums = collect(
        model,
        passes,
        enumerate(decoder_layers(model)),
        lambda _, before, after, mask: block_influence(before, after, mask),
    )
    tokens = sum(map(len, ids))
    return [float(sums[index] / tokens) for index in sorted(sums)]


INFLUENCE_PLOT = Plot(
    file="influence.csv",
    title="influence",
    x="layer",
    y=("influence",),
    x_label="layer of the model before pruning",
    y_label="block influence",
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Depth:
    """Drop the decoder layers with the least block influence, all at once.

    The result loads in plain transformers.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of decoder layers to drop, rounded to whole layers."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers to drop by index (0 is next to the embedding); overrides `ratio`."""
    protect_first: Annotated[int, Field(ge=0)] = 1
    """Layers at the input that `ratio` never drops, since all later layers depend on the first one's features."""
    protect_last: Annotated[int, Field(ge=0)] = 1
    """Layers at the output that `ratio` never drops."""
    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split to measure on."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per forward pass."""

    spec: ClassVar[Spec] = Spec(
        summary="Drops the layers with the least block influence",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(INFLUENCE_PLOT,),
        paper="Men et al. 2024, arXiv 2403.03853",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast one pass over the calibration rows, and the size of the remaining layers."""
        size = work.size()
        dropped = len(self.layers) or round(self.ratio * size.shape.layers)
        seconds = work.reading(size, self.calibration_rows * self.max_tokens)
        return forecast_reading(work, seconds, size.parameters, size.with_layers(size.shape.layers - dropped))

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models of several parts, and layers that compute by their own index."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if config.get("scale_attn_by_inverse_layer_idx"):
            return Refusal("each layer scales its attention by its own index", "prune/vocabulary, or quantize/gptq")
        return None

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration without the dropped layers.

        By ratio, it is not known which ones are dropped, nor then lists whose entries differ.
        """
        total = layer_count(config)
        if not total:
            return config
        if self.layers:
            dropped = set(self.layers)
            return {**config, **kept_layers_config(config, [index for index in range(total) if index not in dropped])}
        changed = kept_layers_config(config, range(total - round(self.ratio * total)))
        mixed = (
            {name for name in LAYER_LISTS if len(set(config.get(name) or ())) > 1} if round(self.ratio * total) else ()
        )
        return {**config, **changed, **{name: [UNKNOWN] * len(changed[name]) for name in mixed}}

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the shorter model and influence.csv (layer, influence, dropped) to `out`."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        total = len(decoder_layers(model))
        before = model.num_parameters()
        # Refuse bad settings before the forward passes.
        explicit = check_layers(self.layers, total) if self.layers else None
        if explicit is None:
            choose_layers([0.0] * total, self.ratio, self.protect_first, self.protect_last)
        influence = measure_influence(
            model, calibration_ids(tokenizer, rows, self.max_tokens), self.batch_size, tokenizer.pad_token_id
        )
        dropped = (
            choose_layers(influence, self.ratio, self.protect_first, self.protect_last)
            if explicit is None
            else explicit
        )
        log.info("dropping %d of %d layers: %s", len(dropped), total, ", ".join(map(str, dropped)))
        drop_layers(model, dropped)
        save_model(model, tokenizer, out)
        kept = [index for index in range(total) if index not in set(dropped)]
        carried = carry_masks(source, out, find_layout(model).origin(kept))
        write_influence(out / INFLUENCE_PLOT.file, influence, dropped)
        return {
            "layers_before": total,
            "layers": total - len(dropped),
            "dropped": " ".join(map(str, dropped)),
            "parameters_before": before,
            "parameters": model.num_parameters(),
            "influence_dropped_max": max((influence[index] for index in dropped), default=0.0),
            **carried,
        }


def write_influence(path: Path, influence: Sequence[float], dropped: Sequence[int]) -> None:
    """Write one line per layer of the model before pruning."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "influence", "dropped"])
        writer.writerows([index, f"{value:.6f}", int(index in dropped)] for index, value in enumerate(influence))
