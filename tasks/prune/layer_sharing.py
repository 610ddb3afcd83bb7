"""Layer sharing: layers in a row get the same weights, saved as copies, for study.

Source: Relaxed Recursive Transformers, Bae et al. 2024, arXiv 2410.20672, section 2, there with loops over all layers.
"""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.masking.archive import archived_bytes
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.sharing import RunCriterion, check_groups, choose_runs, run_scores, share_layers
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import SAVED_BYTES, Forecast, Workload, forecast_reading
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family, has_parts
from tasks.shared.model.layout import decoder_layers, find_layout, layer_count
from tasks.shared.model.masks import carry_masks, recorded_masks
from tasks.shared.model.shared_layers import SharedLayers, write_shared
from tasks.shared.technique import Inputs, Kind, Metrics, Plot, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
SHARING_PLOT = Plot(
    file="sharing.csv",
    title="sharing",
    x="layer",
    y=("score",),
    x_label="first layer of a run",
    y_label="score by which runs are chosen",
)
SECONDS_PER_BYTE = 2 / 4e7
"""Time to compress the weights in memory, with and without copies, by measurement on a CPU core."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LayerSharing:
    """Give layers in a row the same weights, to be trained by a `distill` step.

    The model keeps its layers, so neither file nor times become smaller: no stock format holds a layer once for several places, and
    the copies are saved.  Training holds the copies together.
    """

    method: Literal["copy_first", "mean"] = "copy_first"
    """Weights of the layers of a run.  copy_first: those of its first layer.  mean: the mean of all."""
    count: Annotated[int, Field(ge=1)] = 2
    """Runs of layers to share; they do not overlap."""
    size: Annotated[int, Field(ge=2)] = 2
    """Layers of each run."""
    criterion: RunCriterion = "angular"
    """Runs that are shared, those with the lowest sum of scores.  angular: angle between the states before and after the run.
    repeat: angle between what the run's later layers give and what its first layer gives in their place.  random: by the seed, as a
    control."""
    groups: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] = ()
    """Layers to share by index (0 is next to the embedding), a list for each group; overrides `count`, `size` and `criterion`."""
    protect_first: Annotated[int, Field(ge=0)] = 1
    """Layers at the input that `count` never shares."""
    protect_last: Annotated[int, Field(ge=0)] = 1
    """Layers at the output that `count` never shares."""
    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split to measure on; none are read for `groups` or random runs."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per forward pass."""

    spec: ClassVar[Spec] = Spec(
        summary="Gives neighboring layers the same weights; for study: copies are saved, file and speed stay as they are",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(SHARING_PLOT,),
        paper="Bae et al. 2024, arXiv 2410.20672",
        caveat="no stock format holds shared layers once: the copies are saved, the file is as large as before and computes no faster; only a "
        "runtime of one's own, or an archive that finds copies, gains",
    )

    @property
    def measures(self) -> bool:
        """True if the calibration rows decide."""
        return not self.groups and self.criterion != "random"

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models of several parts, and runs that the model's layers do not give."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        total = layer_count(config)
        try:
            if total:
                self.free(total)
        except TechniqueError as error:
            return Refusal(f"{error.where}: {error.got}; wanted: {error.wanted}", error.fix)
        return None

    def free(self, total: int) -> range:
        """Return the layers that may be shared by score; none if groups are given.

        Raises TechniqueError for groups that this number of layers does not have, or more runs than there is room for.
        """
        if self.groups:
            check_groups(self.groups, total)
            return range(0)
        found = range(self.protect_first, total - self.protect_last)
        if self.count * self.size > len(found):
            raise TechniqueError(
                "count",
                f"{self.count} runs of {self.size} layers, but the protected ends leave {len(found)} of {total}",
                f"at most {len(found)} layers in all runs",
                f"count={len(found) // self.size}, or protect fewer layers" if len(found) >= self.size else "fewer layers per run, or protect fewer",
            )  # fmt: skip
        return found

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the criterion's passes over the calibration rows, and a file as large as before."""
        size = work.size()
        passes = int(self.measures) * (2 + self.size if self.criterion == "repeat" else 1)
        seconds = passes * work.reading(size, self.calibration_rows * self.max_tokens)
        seconds += SECONDS_PER_BYTE * SAVED_BYTES * size.parameters
        return forecast_reading(work, seconds, size.parameters, size.saved())

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the model, shared_layers.json and sharing.csv (layer, score, group) to `out`."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        if self.method == "mean" and recorded_masks(source) is not None:
            raise TechniqueError(
                "method", "mean for a model with masks, whose zeros it would fill", "copy_first", "prune after sharing, or method=copy_first"
            )  # fmt: skip
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        ids: list[list[int]] = []
        if self.measures:
            rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
            ids = calibration_ids(tokenizer, rows, self.max_tokens)
        groups, scores = self.choose(model, Reading(ids, self.batch_size, tokenizer.pad_token_id), run.seed)
        share_layers(list(decoder_layers(model)), groups, self.method)
        sizes, layout = sharing_figures(model, groups), find_layout(model)
        save_model(model, tokenizer, out)
        del model
        write_shared(out, SharedLayers(layers=layout.layers, groups=groups))
        firsts = {layer: group[0] for group in groups for layer in group}
        total = int(sizes["layers"])
        carried = carry_masks(source, out, layout.origin([firsts.get(layer, layer) for layer in range(total)]))
        write_sharing(out / SHARING_PLOT.file, total, scores, groups)
        figures = sizes | {"size_bytes": weight_bytes(out)}
        tell(figures)
        return {**figures, **carried}

    def choose(
        self, model: "PreTrainedModel", reading: Reading, seed: int
    ) -> tuple[tuple[tuple[int, ...], ...], Sequence[float]]:
        """Return the groups of layers to share, and the score of the run that starts at each layer.

        There are no scores if groups are given.
        Raises TechniqueError for groups whose layers have different weights, or if no choice of runs has the same.
        """
        layers = list(decoder_layers(model))
        free = self.free(len(layers))
        if self.groups:
            return check_groups(self.groups, len(layers), layers), []
        scores = run_scores(self.criterion, model, reading, self.size, seed)
        starts = choose_runs(scores, free, self.count, self.size)
        return tuple(tuple(range(start, start + self.size)) for start in starts), scores


def sharing_figures(model: "PreTrainedModel", groups: Sequence[Sequence[int]]) -> Metrics:
    """Figures of a model with shared layers: parameters, distinct ones, bytes in an archive."""
    layers, parameters = decoder_layers(model), model.num_parameters()
    distinct = distinct_parameters(model, groups)
    return {
        "layers": len(layers), "distinct_layers": len(layers) - sum(len(group) - 1 for group in groups),
        "shared": " ".join("+".join(map(str, group)) for group in groups),
        "parameters": parameters, "distinct_parameters": distinct,
        "distinct_share": round(distinct / parameters, 4),
        "archive_bytes": archived_bytes(model), "distinct_archive_bytes": archived_bytes(model, distinct=True),
    }  # fmt: skip


def distinct_parameters(model: "PreTrainedModel", groups: Sequence[Sequence[int]]) -> int:
    """Return the number of parameters if the layers of each group count once."""
    layers = decoder_layers(model)
    copies = sum((len(group) - 1) * sum(weight.numel() for weight in layers[group[0]].parameters()) for group in groups)
    return int(model.num_parameters()) - copies


def tell(figures: Metrics) -> None:
    """Log what is shared, and that nothing is saved by it alone."""
    log.info(
        "shared layers: %s; %s of %s parameters are distinct (%.1f %%).  For study: no stock format holds a layer once for several places, so "
        "the copies are saved, and the file is as large as before (%.1f MB) and computes no faster.  Only a runtime of one's own gains, or an archive "
        "that finds the copies (%.1f MB); a zip file, which looks back 32 KB, does not (%.1f MB).  Training holds the copies together",
        figures["shared"], f"{figures['distinct_parameters']:,}", f"{figures['parameters']:,}", 100 * float(figures["distinct_share"]),
        *(float(figures[name]) / 1e6 for name in ("size_bytes", "distinct_archive_bytes", "archive_bytes")),
    )  # fmt: skip


def write_sharing(path: Path, total: int, scores: Sequence[float], groups: Sequence[Sequence[int]]) -> None:
    """Write one line per layer.

    scores: of the run that starts at each layer, as far as there is one.  group: number of the layer's group, from 1; empty if it shares
    its weights with no other.
    """
    places = {layer: number for number, group in enumerate(groups, 1) for layer in group}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "score", "group"])
        for layer in range(total):
            score = scores[layer] if layer < len(scores) else math.inf
            writer.writerow([layer, f"{score:.12g}" if math.isfinite(score) else "", places.get(layer, "")])
