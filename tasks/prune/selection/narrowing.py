"""Removal of channels, heads or neurons: shared settings, from scores to a model.

Importance (`importance.py`), number of units (`counts.py`), choice (`picks.py`) and surgery (`copying.py`) are separate.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.activations import Axis, BlockAxis, last_projections, measure_gates, measure_moments
from tasks.prune.selection.copying import axes_of, build_student, changed_sizes
from tasks.prune.selection.counts import best_multiple
from tasks.prune.selection.importance import CRITERIA, DIFFERENTIATED, MEASURED, Block, Criterion, Moments
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.noise import warn_noisy
from tasks.prune.selection.picks import Picks, choose, leading
from tasks.prune.selection.record import KEPT_PLOT, SELECTION_FILE, write_kept, write_selection
from tasks.prune.selection.shape import Shape, dimensions_of, planned_shape, shape_from, shape_of
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import CONV1D, check_family, has_parts
from tasks.shared.model.layout import decoder_layers
from tasks.shared.model.masks import carry_masks
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
TRAINING_COST = 3
"""Cost of a forward and a backward pass relative to a forward pass."""
NAMES: Mapping[Axis, str] = {
    "hidden": "channels of the hidden state",
    "heads": "heads in every layer",
    "neurons": "neurons in every layer",
}
"""Units, in the log."""


class Narrowed(NamedTuple):
    """A narrower model, and how it was made.

    picks: units kept, by layer.
    scores: importance of the units, (units,) for each layer, by axis; for channels also for the head.
    figures: of corrections.
    """

    model: "PreTrainedModel"
    picks: "Sequence[Picks]"
    scores: "Mapping[Axis, Sequence[Tensor]]"
    figures: Metrics


def narrowing_spec(summary: str, paper: str) -> Spec:
    """Spec of a technique that makes every layer narrower."""
    return Spec(
        summary=summary,
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(KEPT_PLOT,),
        paper=paper,
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Narrowing(ABC):
    """Settings of techniques that make every layer equally narrower."""

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of the units to remove from every layer, rounded as `multiple` says."""
    multiple: Annotated[int, Field(ge=0)] = 0
    """Divisor of the columns that remain; 0: the first of 256, 64 and 32, which file formats ask for, that moves `ratio` by at most 0.05
    or half a unit."""
    criterion: Criterion = "activation"
    """Units that stay.  activation: the largest outputs on the calibration rows.  contribution: the largest share in the block's output.
    fluctuation: the largest deviations from their mean, times outgoing weights.  wanda: outgoing weights times the norms of their inputs.
    taylor: the loss changes most, to first order.  magnitude: the largest weights.  random: by the seed.  The last two are controls."""
    calibration_rows: Annotated[int, Field(ge=1)] = 32
    """Conversations of the calibration split to measure on; magnitude and random by themselves read none."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per pass."""

    axis: ClassVar[Axis]
    """Units that go, of a technique that removes one kind."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Kinds of units that go."""
        return (self.axis,)

    @abstractmethod
    def narrowed(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes that the settings ask for.

        shape: sizes before.
        kind: the configuration's `model_type`; empty if it is unknown.
        Raises TechniqueError for settings that leave nothing, remove nothing, or give sizes that the configuration does not take.
        """

    @abstractmethod
    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why the units of models with this configuration cannot be cut, or None."""

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models whose units cannot be cut, and sizes that cannot be."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if config.get("model_type") in CONV1D:
            return Refusal("its projections are Conv1D, and its configuration has other names for sizes", "prune/depth")
        refusal, shape = self.unsupported(config), planned_shape(config)
        if refusal is not None or shape is None:
            return refusal
        try:
            self.narrowed(shape, str(config.get("model_type", "")))
        except TechniqueError as error:
            return Refusal(f"{error.where}={error.got}; wanted: {error.wanted}", error.fix)
        return None

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration with the sizes that remain."""
        shape = planned_shape(config)
        if shape is None:
            return config
        return {**config, **changed_sizes(shape, self._planned(shape, str(config.get("model_type", ""))))}

    def _planned(self, shape: Shape, kind: str) -> Shape:
        """Return the sizes that remain; those before if `refuses` tells that there are none."""
        try:
            return self.narrowed(shape, kind)
        except TechniqueError:
            return shape

    @property
    def passes(self) -> int:
        """Cost of what is measured on the calibration rows, in forward passes over them."""
        cost = TRAINING_COST if self.criterion in DIFFERENTIATED else int(self.criterion in MEASURED)
        return cost * len(self.axes)

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the criterion's passes over the calibration rows, and both models in memory."""
        size = work.size()
        before = shape_from(size.shape)
        small = size.reshaped(dimensions_of(self._planned(before, ""), size.shape))
        seconds = self.passes * work.reading(size, self.calibration_rows * self.max_tokens)
        return forecast_reading(work, seconds, size.parameters + small.parameters, small)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the narrower model, selection.json (units kept) and importance.csv to `out`."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        ids: list[list[int]] = []
        if self.passes:
            rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
            ids = calibration_ids(tokenizer, rows, self.max_tokens)
            warn_noisy(sum(map(len, ids)))
        made = self.narrow(model, ids, tokenizer.pad_token_id, run.seed)
        save_model(made.model, tokenizer, out)
        carried = carry_masks(source, out)
        write_selection(out / SELECTION_FILE, range(len(made.picks)), made.picks)
        shares = write_kept(out / KEPT_PLOT.file, made.scores, made.picks)
        after = shape_of(made.model.config)
        return {
            **self._widths(shape_of(model.config), after),
            "kv_heads": after.kv_heads,
            "parameters_before": model.num_parameters(),
            "parameters": made.model.num_parameters(),
            "importance_kept_min": min(shares),
            **made.figures,
            **carried,
        }

    def _widths(self, before: Shape, after: Shape) -> Metrics:
        """Return the figures of what was cut; if it is of several kinds, the axis is in each name."""
        found: dict[str, float | int | str] = {}
        for axis in self.axes:
            columns, prefix = columns_of(after, axis), f"{axis}_" if len(self.axes) > 1 else ""
            found |= {f"{axis}_before": units_of(before, axis), axis: units_of(after, axis)}
            found |= {f"{prefix}columns": columns, f"{prefix}multiple": best_multiple(columns)}
        return found

    def narrow(self, model: "PreTrainedModel", ids: list[list[int]], pad_id: int, seed: int) -> Narrowed:
        """Return the model with fewer units, in float32, and how they were chosen.

        `model` stays as it is.

        ids: token ids of the calibration conversations; empty if there are no `passes`.
        Raises TechniqueError for scores that are not finite, or weights that cannot be cut.
        """
        import torch

        before = shape_of(model.config)
        after = self.narrowed(before, model.config.model_type)
        for axis in self.axes:
            columns, kept = columns_of(before, axis), columns_of(after, axis)
            log.info(
                "keeping %d of %d %s, %.1f %% removed: %d columns, a multiple of %d",
                *(units_of(after, axis), units_of(before, axis), NAMES[axis]),
                *(100 * (1 - kept / columns), kept, best_multiple(kept)),
            )
        scores = self.scores(model, ids, pad_id, seed)
        stacked = {axis: torch.stack(list(found)) for axis, found in scores.items()}
        chosen = {axis: found.sum(0) if axis == "hidden" else found for axis, found in stacked.items()}
        picks = choose(replace(leading(before), **chosen), before, after)
        layers = range(before.layers)
        small, _ = build_student(model, after, picks, layers, layers)
        figures = self.corrected(small, model, picks, Reading(ids, self.batch_size, pad_id))
        return Narrowed(small, picks, scores, figures)

    @abstractmethod
    def scores(
        self, model: "PreTrainedModel", ids: list[list[int]], pad_id: int, seed: int
    ) -> "Mapping[Axis, Sequence[Tensor]]":
        """Return the importance of every layer's units by the criterion, (units,) each, by axis.

        Channels have one more entry, for the head.
        ids: token ids of the calibration conversations; empty for criteria that read none.
        Raises TechniqueError for scores that are not finite.
        """

    def corrected(
        self, small: "PreTrainedModel", model: "PreTrainedModel", picks: Sequence[Picks], reading: Reading
    ) -> Metrics:
        """Correct in place what else depends on the units that went, and return figures of it.

        small, model: after and before the cut.  picks: units kept, by layer.
        """
        return {}


class BlockNarrowing(Narrowing):
    """Removal of equally many units from every layer's attention or feed-forward block."""

    axis: ClassVar[BlockAxis]

    @property
    def axes(self) -> tuple[BlockAxis, ...]:
        """Kinds of units that go."""
        return (self.axis,)

    def scores(
        self, model: "PreTrainedModel", ids: list[list[int]], pad_id: int, seed: int
    ) -> "Mapping[Axis, Sequence[Tensor]]":
        """Return the importance of every layer's units by the criterion, (units,) each, by axis."""
        return {axis: self._scores(model, axis, ids, pad_id, seed) for axis in self.axes}

    def _scores(
        self, model: "PreTrainedModel", axis: BlockAxis, ids: list[list[int]], pad_id: int, seed: int
    ) -> "list[Tensor]":
        """Return the importance of every layer's units of one kind, (units,) each."""
        import torch

        units = units_of(shape_of(model.config), axis)
        lasts, empty = last_projections(model, axis), torch.empty(0)
        measured = (model, axis, units, ids, self.batch_size, pad_id)
        moments, gates = [Moments(empty, empty, 0)] * len(lasts), [empty] * len(lasts)
        if self.criterion in MEASURED:
            moments = measure_moments(*measured)
        if self.criterion in DIFFERENTIATED:
            gates = measure_gates(*measured)
        draws = torch.rand(len(lasts), units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = []
        for layer, last in enumerate(lasts):
            weight: Tensor = last.get_parameter("weight").detach().cpu()
            incoming = rows_into(decoder_layers(model)[layer], axis, units)
            block = Block(
                weight.reshape(weight.shape[0], units, -1), incoming, draws[layer], moments[layer], gates[layer]
            )
            found.append(CRITERIA[self.criterion](block))
        check_finite(found)
        return found


def units_of(shape: Shape, axis: Axis) -> int:
    """Return the number of units: of a layer, or channels."""
    return {"hidden": shape.hidden, "heads": shape.heads, "neurons": shape.intermediate}[axis]


def columns_of(shape: Shape, axis: Axis) -> int:
    """Return the columns of the matrices that read the units."""
    return units_of(shape, axis) * (shape.head_dim if axis == "heads" else 1)


def rows_into(layer: Any, axis: BlockAxis, units: int) -> "Tensor":
    """Return the weights that produce each unit of a layer, by `axes_of`.

    Returns (units, weights), on the CPU: of a head its queries, of a neuron its gate and its own row.
    """
    import torch

    found = []
    for name, weight in layer.named_parameters():
        kind = (axes_of(name) or ("",))[0]
        if weight.dim() == 2 and kind in (axis, "gates" if axis == "neurons" else axis):
            parts = weight.detach().cpu().chunk(2 if kind == "gates" else 1)
            found += [part.reshape(units, -1) for part in parts]
    return torch.cat(found, dim=1)


def check_finite(scores: "Sequence[Tensor]") -> None:
    """Raise TechniqueError if a layer's scores are not all numbers.

    scores: (units,) per layer.
    """
    bad = [index for index, values in enumerate(scores) if not bool(values.isfinite().all())]
    if bad:
        raise TechniqueError(
            f"layer {bad[0]}",
            f"importance is not finite in {len(bad)} of {len(scores)} layers",
            "finite activations on the calibration rows",
            "check the model with evaluate/perplexity, or choose criterion=magnitude",
        )
