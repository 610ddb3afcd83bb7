"""Layers, neurons and heads within a budget of size or time, by measured sensitivity.

Source: one sensitivity per cut as in ZeroQ, Cai et al. 2020, arXiv 2001.00281; removal of layers as in SLEB, Song et al. 2024,
arXiv 2402.09025.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from tasks.prune.cuts.choice import MILLISECONDS, Bound, Choice, Levels, search, shown, too_small
from tasks.prune.cuts.divergence import Meter
from tasks.prune.cuts.latency import ROUNDS, TOKENS, WARM_UP, TokenTime, in_turn, measure
from tasks.prune.cuts.record import (
    CANDIDATES_FILE,
    KL_PLOT,
    SENSITIVITY_FILE,
    as_text,
    figures,
    table_of,
    write_candidates,
    write_curve,
    write_sensitivity,
)
from tasks.prune.cuts.size import Cut, Parameters
from tasks.prune.depth import UNKNOWN, Depth
from tasks.prune.heads import Heads
from tasks.prune.selection.activations import BlockAxis
from tasks.prune.selection.copying import build_student, changed_sizes
from tasks.prune.selection.counts import MULTIPLES, TOLERANCE
from tasks.prune.selection.importance import DIFFERENTIATED, MEASURED, Criterion
from tasks.prune.selection.layers import Reading
from tasks.prune.selection.narrowing import TRAINING_COST, BlockNarrowing
from tasks.prune.selection.noise import warn_noisy
from tasks.prune.selection.record import SELECTION_FILE, write_selection
from tasks.prune.selection.shape import Shape, dimensions_of, planned_shape, shape_from, shape_of
from tasks.prune.width import Width
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import GENERATION_COST, SAVED_BYTES, Dimensions, Forecast, Size, Workload, forecast_reading
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import CONV1D, check_family, has_parts, is_mixture
from tasks.shared.model.layout import LAYER_LISTS, find_layout, layer_count
from tasks.shared.model.loading import Dtype
from tasks.shared.model.masks import carry_masks
from tasks.shared.model.precision import fast_dtype
from tasks.shared.model.sizes import weight_bytes
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
Unit = Literal["layers", "neurons", "groups", "queries"]
BUDGETS = ("parameters", "bytes", "milliseconds")
TIMED_WHOLE = 4
"""Time of all timed models, in times of the whole one."""
SLACK = 1.1
"""Factor by which the plan's estimate of the smallest model must exceed the budget before the plan refuses it."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Budget:
    """Remove layers, neurons and heads so that the model fits a budget and stays near to itself.

    KL divergences from the whole model are measured for each kind of cut alone, and are taken to add up.  Of all cuts that fill the
    budget, those with the least sums, and the best of each kind alone, are measured as a whole: the one with the least divergence is
    written.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of all parameters to remove at least, embedding and head included."""
    parameters: Annotated[int, Field(ge=0)] = 0
    """Most parameters of the result; overrides `ratio`.  0: by `ratio`."""
    bytes: Annotated[int, Field(ge=0)] = 0
    """Most bytes of the result's safetensors, which are in bfloat16; overrides `ratio`, and excludes `parameters`.  0: by these."""
    milliseconds: Annotated[float, Field(ge=0)] = 0
    """Most time for a token that the result generates for one stream, in transformers on this machine, which is timed and named in the
    key; overrides `ratio`, and excludes the others.  0: by these."""
    units: Annotated[tuple[Unit, ...], Field(min_length=1)] = ("layers", "neurons", "groups")
    """Units that may go.  layers: whole ones.  neurons: of the feed-forward blocks.  groups: key-value heads with all query heads that
    share them.  queries: query heads, equally many of every group."""
    levels: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.125, 0.25, 0.375, 0.5)
    """Shares of the neurons or heads to remove and measure; widths between two levels are interpolated.  No more than the largest share
    goes of any kind of units, layers included."""
    multiple: Annotated[int, Field(ge=0)] = 0
    """Divisor of the columns that remain in narrower layers; 0: of the neurons, the first of 256, 64 and 32 that is at most a twentieth
    of them; of heads, as in prune/heads."""
    shortlist: Annotated[int, Field(ge=1)] = 3
    """Layers to try at each step of the removal of layers, the least sensitive first; 1: by their own sensitivities alone."""
    checks: Annotated[int, Field(ge=1)] = 3
    """Cuts with the least predicted divergence to measure as a whole, besides the best ones of a single kind."""
    criterion: Criterion = "activation"
    """Neurons and heads that stay, as in prune/width."""
    calibration_rows: Annotated[int, Field(ge=1)] = 16
    """Conversations of the calibration split to measure on."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Conversations per pass."""

    spec: ClassVar[Spec] = Spec(
        summary="Removes layers, neurons and heads within a budget of parameters, bytes or time, by measured sensitivity",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf", "scipy", "numpy"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(KL_PLOT,),
        paper="Cai et al. 2020, arXiv 2001.00281; Song et al. 2024, arXiv 2402.09025",
    )

    @model_validator(mode="after")
    def _one_budget(self) -> "Budget":
        given = [name for name in BUDGETS if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: set one of them")
        return self

    @property
    def setting(self) -> str:
        """Name of the setting that states the budget."""
        return next((name for name in BUDGETS if getattr(self, name)), "ratio")

    @property
    def timed(self) -> bool:
        """True for a budget in milliseconds."""
        return self.milliseconds > 0

    @property
    def narrowings(self) -> tuple[BlockNarrowing, ...]:
        """Techniques that remove neurons and heads, whose criterion and limits hold here."""
        common: dict[str, Any] = {"criterion": self.criterion, "batch_size": self.batch_size, "multiple": self.multiple}
        units = (unit for unit in ("groups", "queries") if unit in self.units)
        heads = tuple(Heads(unit=unit, **common) for unit in units)
        return (Width(**common), *heads) if "neurons" in self.units else heads

    def limit(self, total: int, header: int) -> int:
        """Return the budget in parameters; with `milliseconds`, which say nothing about them, all.

        total: parameters of the model.
        header: bytes of a file besides the weights.
        """
        if self.timed:
            return total
        if self.bytes:
            return max(0, int((self.bytes - header) // SAVED_BYTES))
        return self.parameters or total - ceil(self.ratio * total)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models whose units cannot be cut, and budgets that are far too small."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if config.get("model_type") in CONV1D:
            return Refusal("its projections are Conv1D, and its configuration names sizes otherwise", "prune/depth")
        if (found := self.unsupported(config)) is not None:
            fits = [unit for unit in self.units if replace(self, units=(unit,)).unsupported(config) is None]
            return Refusal(found.reason, f"units=[{', '.join(fits)}]" if fits else found.instead)
        return self._too_small(config)

    def unsupported(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why some of the units of models with this configuration cannot be cut, or None."""
        layers = Depth(ratio=0, protect_first=0, protect_last=0).refuses(config) if "layers" in self.units else None
        found = (layers, *(narrowing.unsupported(config) for narrowing in self.narrowings))
        return next(filter(None, found), None)

    def _too_small(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse a budget that is smaller by far than an estimate of the smallest model."""
        shape, kind = planned_shape(config), str(config.get("model_type", ""))
        if shape is None or is_mixture(config):
            return None
        sizes = Dimensions.from_config(config)
        outer = sizes.vocabulary * sizes.width * (1 if config.get("tie_word_embeddings", True) else 2)
        total = outer + sizes.layers * sizes.layer_parameters
        smallest = self.levels_of(shape, kind).smallest.result
        least = Size(total, 0, outer, sizes).reshaped(dimensions_of(smallest, sizes)).parameters
        if least <= SLACK * self.limit(total, 0):
            return None
        return Refusal(
            f"{self.setting}={getattr(self, self.setting)} leaves about {self.limit(total, 0):,} parameters, and the smallest cut takes {least:,.0f}",
            "a larger budget, larger levels, or more units",
        )

    def levels_of(self, shape: Shape, kind: str) -> Levels:
        """Return the cuts of each kind to choose from.

        shape: sizes of the model.
        kind: the configuration's `model_type`; empty if it is unknown.
        """
        layers = min(floor(max(self.levels) * shape.layers), shape.layers - 1) if "layers" in self.units else 0
        points, step = self._points(shape, kind), self.step(shape)
        widths = (width for width in range(shape.intermediate - 1, points[-1] - 1, -1) if width % step == 0)
        parts = (part for part in self.narrowings if part.axis == "heads")
        heads = [narrowed for part in parts for narrowed in self._narrowed(part, shape, kind)]
        return Levels(shape, layers, (shape.intermediate, *widths), points, (shape, *dict.fromkeys(heads)))

    def step(self, shape: Shape) -> int:
        """Return the divisor of the number of neurons of a narrower model."""
        most = TOLERANCE * shape.intermediate
        return self.multiple or next((step for step in MULTIPLES if step <= most), 1)

    def _points(self, shape: Shape, kind: str) -> tuple[int, ...]:
        """Return the numbers of neurons to measure, descending; the first is the whole."""
        if "neurons" not in self.units:
            return (shape.intermediate,)
        found = self._narrowed(Width(multiple=self.step(shape)), shape, kind)
        return tuple(sorted({shape.intermediate, *(narrowed.intermediate for narrowed in found)}, reverse=True))

    def _narrowed(self, part: BlockNarrowing, shape: Shape, kind: str) -> list[Shape]:
        """Return the sizes at each level at which something goes, and something stays."""
        found = []
        for level in sorted(self.levels):
            with suppress(TechniqueError):
                found.append(replace(part, ratio=level).narrowed(shape, kind))
        return found

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration as if the first level of every narrower kind were taken.

        It is not known which layers are dropped, nor then lists whose entries differ.
        """
        shape, kind = planned_shape(config), str(config.get("model_type", ""))
        lists = [name for name in LAYER_LISTS if "layers" in self.units and len(set(config.get(name) or ())) > 1]
        changed = {**config, **{name: [UNKNOWN] * layer_count(config) for name in lists}}
        if shape is None:
            return changed
        levels = self.levels_of(shape, kind)
        narrower = replace(levels.heads[:2][-1], intermediate=levels.points[:2][-1])
        return changed | changed_sizes(shape, narrower)

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a pass over the calibration rows per measurement, and a model of the budget."""
        size = work.size()
        budget = min(self.limit(int(size.parameters), 0), int(size.parameters))
        levels = self.levels_of(shape_from(size.shape), "")
        dropped = min(levels.layers, ceil((size.parameters - budget) / max(1.0, size.layer)))
        passes = self.measurements(levels, levels.layers if self.timed else dropped) + self.passes
        made = Size(
            budget, SAVED_BYTES * budget, size.outer, size.shape.with_layers(max(1, size.shape.layers - dropped))
        )
        seconds = passes * work.reading(size, self.calibration_rows * self.max_tokens)
        if self.timed:
            seconds += GENERATION_COST * work.reading(size, ROUNDS * (WARM_UP + TOKENS) * TIMED_WHOLE)
        return forecast_reading(work, seconds, size.parameters + budget, made)

    @property
    def passes(self) -> int:
        """Cost of the importance of neurons and heads, and of the whole model, in forward passes."""
        cost = TRAINING_COST if self.criterion in DIFFERENTIATED else int(self.criterion in MEASURED)
        return 1 + cost * len({part.axis for part in self.narrowings})

    def measurements(self, levels: Levels, dropped: int) -> int:
        """Return the most measurements of divergence.

        dropped: layers that go if nothing else does.
        """
        order = levels.before.layers + self.shortlist * max(0, dropped - 1) if dropped else 0
        return order + len(levels.points) + len(levels.heads) + self.checks + len(set(self.units))

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the smaller model and its records to `out`.

        The records are sensitivity.csv (kind, level, dropped, parameters, kl), candidates.csv (sizes, parameters, predicted and measured
        KL), divergence.csv (the plot) and selection.json (units kept).
        Returns sizes before and after, budget_parameters, size_bytes, kl_sum (predicted), kl_calibration (measured), and kl_layers,
        kl_neurons and kl_heads: those of the best cut of this kind alone, if one fits the budget.  With `milliseconds` also the time of a
        token before and after, as measured (milliseconds_before, milliseconds) and as the choice took it (milliseconds_fitted).
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        given = inputs.one("model")
        check_dense(given.path)
        model, tokenizer = load_model(given.path, device=run.compute.device), load_tokenizer(given.path, chat=False)
        check_family(self, model.config.to_dict(), str(given.path))
        rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
        reading = Reading(calibration_ids(tokenizer, rows, self.max_tokens), self.batch_size, tokenizer.pad_token_id)
        warn_noisy(sum(map(len, reading.ids)))
        cache = run.prediction_cache if run.prediction_cache and given.digest else run.scratch / "cache"
        before = shape_of(model.config)
        parameters = Parameters.of(model, before)
        dtype = fast_dtype(run.compute.device)
        levels = self.levels_of(before, model.config.model_type)
        times = measure(model.config, parameters, levels, dtype, run.compute.device) if self.timed else None
        bound = self.bound(parameters, levels, times)
        meter = self.meter(model, reading, run.seed, cache, f"{given.digest} {run.compute.threads}")
        found = self.choose(meter, levels, bound)
        log.info("%s", as_text(table := table_of(found, parameters.after, bound)))
        small, picks = self.build(meter, found.chosen.cut), meter.picks(found.chosen.cut)
        save_model(small, tokenizer, out)
        carried = carry_masks(given.path, out, find_layout(small).origin(found.chosen.cut.kept))
        write_candidates(out / CANDIDATES_FILE, table)
        write_sensitivity(out / SENSITIVITY_FILE, found.measurements, parameters.after)
        write_curve(out / KL_PLOT.file, found.measurements, parameters.after, parameters.total)
        write_selection(out / SELECTION_FILE, found.chosen.cut.kept, picks)
        written = {
            "parameters": small.num_parameters(),
            **({} if times else {"budget_parameters": min(int(bound.most), parameters.total)}),
            "size_bytes": weight_bytes(out),
        }
        spent = self.spent(model, small, found.chosen.cost, dtype, run.compute.device) if times else {}
        return figures(found, before) | {"parameters_before": parameters.total} | written | spent | carried

    def meter(self, model: "PreTrainedModel", reading: Reading, seed: int, cache: Path, made_from: str = "") -> Meter:
        """Return a meter of cuts, by the importance of neurons and heads.

        seed: of criterion "random".
        cache: folder of measurements, which may be shared.  made_from: what tells the model from others there.
        """
        scores: dict[BlockAxis, Sequence[Tensor]] = {}
        for part in self.narrowings:
            if part.axis not in scores:
                scores[part.axis] = part.scores(model, reading.ids, reading.pad_id, seed)[part.axis]
        return Meter(model, reading, shape_of(model.config), scores, cache, made_from)

    def choose(self, meter: Meter, levels: Levels, bound: Bound) -> Choice:
        """Return the best cut within the budget, by measurements."""
        runs = (Cut(tuple(range(count)), meter.before) for count in range(levels.layers))
        dropped = next((len(cut.dropped) for cut in runs if bound.fits(cut)), levels.layers)
        with progress_bar("sensitivity", self.measurements(levels, dropped)) as advance:

            def divergence(cut: Cut) -> float:
                known = cut in meter.found
                value = meter.divergence(cut)
                advance(
                    int(not known),
                    note=f"{len(cut.kept)} layers, {cut.shape.intermediate} neurons, {cut.shape.heads} heads",
                )
                return value

            return search(levels, self.shortlist, self.checks, divergence, bound)

    def bound(self, parameters: Parameters, levels: Levels, times: TokenTime | None = None) -> Bound:
        """Return the budget, in parameters or milliseconds.

        times: of a token, for a budget in milliseconds.
        Raises TechniqueError if even the smallest cut exceeds the budget.  A budget that the whole model fits is logged.
        """
        if times is not None:
            bound = Bound(self.milliseconds, times.after, MILLISECONDS)
        else:
            bound = Bound(self.limit(parameters.total, parameters.header), parameters.after)
        whole, least = bound.cost(Cut((), parameters.before)), bound.cost(levels.smallest)
        if bound.most >= whole:
            log.warning("the model has %s %s, and the budget is %s: nothing goes", shown(whole), bound.unit, shown(bound.most))  # fmt: skip
        if least > bound.most:
            fits = {
                "bytes": int(SAVED_BYTES * least) + parameters.header, "parameters": least,
                "ratio": floor((1 - least / parameters.total) * 1000) / 1000, "milliseconds": ceil(least * 100) / 100,
            }  # fmt: skip
            raise too_small(self.setting, fits[self.setting], bound, levels)
        return bound

    def spent(
        self, whole: "PreTrainedModel", small: "PreTrainedModel", fitted: float, dtype: Dtype, device: str
    ) -> Metrics:
        """Time the whole model and the written one, and warn if the budget is missed.

        Both are cast to the arithmetic that serves them.  fitted: time that the choice was made by, milliseconds.
        """
        import torch

        for model in (whole, small):
            cast(Any, model).to(device, getattr(torch, dtype))
        before, after = in_turn([lambda: whole, lambda: small])
        log.info("a token takes %.3g ms, before it took %.3g, and %.3g by the fit", after, before, fitted)
        if after > self.milliseconds:
            log.warning(
                "a token takes %.3g ms, and the budget is %.3g: the fit missed it, or the machine was busy; milliseconds=%.3g allows for that",
                after, self.milliseconds, self.milliseconds * fitted / after,
            )  # fmt: skip
        return {"milliseconds_before": before, "milliseconds": after, "milliseconds_fitted": fitted}

    def build(self, meter: Meter, cut: Cut) -> "PreTrainedModel":
        """Return the meter's model without what a cut removes, in float32; it itself stays as it is."""
        small, _ = build_student(meter.model, cut.result, meter.picks(cut), cut.kept, cut.kept)
        return small
