"""Depth pruning: remove the least important decoder layers.

Source: ShortGPT, Men et al. 2024, arXiv 2403.03853; runs of layers by angular distance, Gromov et al. 2024, arXiv 2403.17887.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.layers import (
    READ_TEXT,
    LayerCriterion,
    Reading,
    choose_layers,
    free_layers,
    layers_by_place,
    measure_influence,
)
from tasks.prune.selection.noise import warn_noisy
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.calibration import calibration_ids, calibration_rows
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
from tasks.shared.technique import Inputs, Kind, Metrics, Plot, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
UNKNOWN = "unknown"
"""Per-layer setting of a layer that is not chosen yet."""


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
    """Drop decoder layers, all at once: by default those with the least block influence.

    The result loads in plain transformers.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of decoder layers to drop, rounded to whole layers."""
    criterion: LayerCriterion = "influence"
    """Layers that go.  influence: those that change the direction of their input least.  angular: the run of layers in a row that does.
    perplexity: one by one, each time the layer whose removal hurts the calibration rows least; each takes a pass per remaining layer.
    first, last, random (by the seed): controls, which read no text."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers to drop by index (0 is next to the embedding); overrides `ratio` and `criterion`."""
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
        summary="Drops the layers with the least influence, by one of several criteria",
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
        """Forecast the passes over the calibration rows, and the size of the remaining layers."""
        size = work.size()
        dropped = len(self.layers) or round(self.ratio * size.shape.layers)
        passes = 1 if self.layers else self._passes(size.shape.layers, dropped)
        seconds = passes * work.reading(size, self.calibration_rows * self.max_tokens)
        return forecast_reading(work, seconds, size.parameters, size.with_layers(size.shape.layers - dropped))

    def _passes(self, total: int, dropped: int) -> int:
        """Passes over the calibration rows: one for the record, and those of the criterion."""
        free = max(0, total - self.protect_first - self.protect_last)
        return 1 + {"angular": 1, "perplexity": sum(free - turn for turn in range(dropped))}.get(self.criterion, 0)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models of several parts, layers that compute by their own index, and bad ratios."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if config.get("scale_attn_by_inverse_layer_idx"):
            return Refusal("each layer scales its attention by its own index", "prune/vocabulary, or quantize/gptq")
        total = layer_count(config)
        try:
            if self.layers and total:
                check_layers(self.layers, total)
            elif total:
                self._free(total)
        except TechniqueError as error:
            return Refusal(f"{error.where}: {error.got}; wanted: {error.wanted}", error.fix)
        return None

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration without the dropped layers.

        By ratio, it is not known which ones are dropped, nor then lists whose entries differ.
        """
        total = layer_count(config)
        if not total:
            return config
        known = set(self.layers or self._by_place(total))
        if known:
            return {**config, **kept_layers_config(config, [index for index in range(total) if index not in known])}
        changed = kept_layers_config(config, range(total - round(self.ratio * total)))
        mixed = (
            {name for name in LAYER_LISTS if len(set(config.get(name) or ())) > 1} if round(self.ratio * total) else ()
        )
        return {**config, **changed, **{name: [UNKNOWN] * len(changed[name]) for name in mixed}}

    def _by_place(self, total: int) -> list[int]:
        """Return the layers that the criteria "first" and "last" drop.

        No layers for another criterion, or if `refuses` tells why.
        """
        if self.criterion != "first" and self.criterion != "last":
            return []
        try:
            return layers_by_place(self.criterion, *self._free(total), seed=0)
        except TechniqueError:
            return []

    def _free(self, total: int) -> tuple[range, int]:
        return free_layers(total, self.ratio, self.protect_first, self.protect_last)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the shorter model and influence.csv (layer, influence, dropped, score) to `out`."""
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
        free, count = (range(0), 0) if explicit else self._free(total)
        ids = calibration_ids(tokenizer, rows, self.max_tokens)
        reading = Reading(ids, self.batch_size, tokenizer.pad_token_id)
        influence = measure_influence(model, *reading)
        dropped = explicit or []
        scores: Mapping[int, float] = {}
        if count:
            if self.criterion in READ_TEXT:
                warn_noisy(sum(map(len, ids)))
            dropped, scores = choose_layers(self.criterion, model, reading, influence, free, count, run.seed)
        log.info("dropping %d of %d layers: %s", len(dropped), total, ", ".join(map(str, dropped)))
        drop_layers(model, dropped)
        save_model(model, tokenizer, out)
        kept = [index for index in range(total) if index not in set(dropped)]
        carried = carry_masks(source, out, find_layout(model).origin(kept))
        write_influence(out / INFLUENCE_PLOT.file, influence, dropped, scores)
        return {
            "layers_before": total,
            "layers": total - len(dropped),
            "dropped": " ".join(map(str, dropped)),
            "parameters_before": before,
            "parameters": model.num_parameters(),
            "influence_dropped_max": max((influence[index] for index in dropped), default=0.0),
            **carried,
        }


def write_influence(
    path: Path, influence: Sequence[float], dropped: Sequence[int], scores: Mapping[int, float] | None = None
) -> None:
    """Write one line per layer of the model before pruning.

    scores: what the criterion compared, where it looks at layers: influence, angular distance of the run that starts at a layer, or
    negative log-likelihood per token without it.
    """
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "influence", "dropped", "score"])
        for index, value in enumerate(influence):
            score = (scores or {}).get(index)
            writer.writerow([index, f"{value:.6f}", int(index in dropped), "" if score is None else f"{score:.6f}"])
