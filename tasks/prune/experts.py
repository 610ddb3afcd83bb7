"""Expert pruning: remove the least important experts of every layer of a mixture.

Source: Lasby et al. 2025, arXiv 2510.13999.
"""

import csv
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.selection.mixtures import find_mixtures, keep_experts
from tasks.prune.selection.picks import highest
from tasks.prune.selection.record import KEPT_PLOT, SELECTION_FILE, write_shares
from tasks.prune.selection.routing import CRITERIA, WEIGHED, ExpertCriterion, Routing, measure_routing
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.mixtures import expert_count, experts_per_token, kept_experts_config
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import ROUTED, check_family, has_parts, is_mixture
from tasks.shared.model.masks import carry_masks
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
EXPERTS_FILE = "experts.csv"
LEAST = 2
"""Fewest experts of a layer: with one there is nothing to choose, and some routers fail."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Experts:
    """Remove the least important experts of a mixture, equally many in each of its layers.

    Experts that all tokens share and layers without experts stay as they are.  The result loads in plain transformers.
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of the experts to remove from every layer, rounded to whole experts."""
    kept: Annotated[int, Field(ge=0)] = 0
    """Experts to keep in every layer; overrides `ratio`.  0: by `ratio`."""
    criterion: ExpertCriterion = "reap"
    """Experts that stay.  reap: the largest mean, over the tokens that take the expert, of the gate weight times the norm of its output.
    total: the largest sum of the same, so that experts which many tokens take count more.  frequency: taken by the most tokens.
    random: by the seed, a control that reads no text."""
    calibration_rows: Annotated[int, Field(ge=1)] = 128
    """Conversations of the calibration split to measure on: more than for dense models, since a token takes few of the experts."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per conversation; longer ones are truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per pass."""

    spec: ClassVar[Spec] = Spec(
        summary="Removes the experts of a mixture with the least gate-weighted outputs",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        plots=(KEPT_PLOT,),
        paper="Lasby et al. 2025, arXiv 2510.13999",
        caveat="a token takes as many experts as before: the file and the memory become smaller, the work per token does not",
    )

    def count(self, total: int, per_token: int) -> int:
        """Return the number of experts to keep in every layer.

        total: experts of a layer.  per_token: experts that a token takes.
        Raises TechniqueError for settings that leave fewer than a token takes, that keep more than there are, or that remove none.
        """
        least = max(LEAST, per_token)
        if least > total:
            got = f"{total} experts, and each token takes {per_token}"
            raise TechniqueError("model", got, f"at least {least}", "a mixture whose configuration agrees with itself")
        if self.kept > total:
            raise TechniqueError("kept", f"{self.kept} of {total}", f"at most {total}", f"kept={total} or less")
        count = self.kept or int((1 - self.ratio) * total + 0.5)
        if self.ratio and not self.kept and count == total:
            fix = f"ratio={1 / total:.3g} or more, ratio=0, or leave the step out"
            raise TechniqueError("ratio", f"{self.ratio} of {total} experts removes none", "at least one of them", fix)
        if count >= least:
            return count
        name = "kept" if self.kept else "ratio"
        given = f"{self.kept} of {total} experts" if self.kept else f"{self.ratio} leaves {count} of {total} experts"
        raise TechniqueError(
            name,
            f"{given}, and each token takes {per_token}" if per_token else given,
            f"at least {least} in every layer",
            f"kept={least}" if self.kept else f"ratio={int(100 * (1 - least / total)) / 100} or less",
        )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse dense models, routers that are not known, and numbers of experts that cannot be."""
        if has_parts(config):
            return Refusal("several parts; its layers are those of the language model within", "a text-only model")
        if not is_mixture(config):
            return Refusal("no experts: it is a dense model", "prune/width, prune/heads or prune/depth")
        if config.get("model_type") not in ROUTED:
            return Refusal("its router is none of those that were tested with fewer experts", "prune/depth")
        if (config.get("n_group") or 1) > 1:
            return Refusal(f"its router first chooses among {config['n_group']} groups of experts", "prune/depth")
        try:
            self.count(expert_count(config), experts_per_token(config))
        except TechniqueError as error:
            return Refusal(f"{error.where}={error.got}; wanted: {error.wanted}", error.fix)
        return None

    def changed_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration with the experts that remain."""
        total = expert_count(config)
        return {**config, **kept_experts_config(config, self._planned(total, experts_per_token(config)))}

    def _planned(self, total: int, per_token: int) -> int:
        """Return the number of experts that remain; all if `refuses` tells why there are none."""
        try:
            return self.count(total, per_token)
        except TechniqueError:
            return total

    @property
    def passes(self) -> int:
        """Cost of what is measured, in forward passes over the calibration rows.

        For the outputs, every expert computes twice.
        """
        return 2 if self.criterion in WEIGHED else int(self.criterion != "random")

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the passes over the calibration rows, and both models in memory.

        Layers without experts are counted as if they had some.
        """
        size = work.size()
        small = size.reshaped(replace(size.shape, experts=self._planned(size.shape.experts, 0)))
        seconds = self.passes * work.reading(size, self.calibration_rows * self.max_tokens)
        return forecast_reading(work, seconds, size.parameters + small.parameters, small)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the smaller model to `out`, with selection.json, experts.csv and importance.csv."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        config = model.config.to_dict()
        check_family(self, config, str(source))
        total, per_token = expert_count(config), experts_per_token(config)
        count = self.count(total, per_token)
        mixtures = find_mixtures(model)
        log.info(
            "keeping %d of %d experts in %d of %d layers, %.1f %% removed; each token takes %d",
            *(count, total, len(mixtures), model.config.num_hidden_layers, 100 * (1 - count / total), per_token),
        )
        ids: list[list[int]] = []
        if self.passes:
            rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
            ids = calibration_ids(tokenizer, rows, self.max_tokens)
        routings = self.measure(model, mixtures, ids, tokenizer.pad_token_id, run.seed)
        scores = {layer: CRITERIA[self.criterion](routing) for layer, routing in routings.items()}
        check_finite(scores)
        kept = {layer: highest(values, count) for layer, values in scores.items()}
        figures = self._figures(routings, kept)
        small = keep_experts(model, kept)
        before, after = model.num_parameters(), small.num_parameters()
        save_model(small, tokenizer, out)
        carried = carry_masks(source, out)
        shares = write_choice(out, routings, scores, kept)
        return {
            **{"experts_before": total, "experts": count, "experts_per_token": per_token},
            **{"parameters_before": before, "parameters": after, "importance_kept_min": min(shares.values())},
            **figures,
            **carried,
        }

    def measure(
        self, model: "PreTrainedModel", mixtures: "Mapping[int, Module]", ids: list[list[int]], pad_id: int, seed: int
    ) -> dict[int, Routing]:
        """Return what the criterion reads of every layer's experts, by layer.

        mixtures: stacked experts, by layer.
        ids: token ids of the calibration conversations; empty for a criterion that reads none, whose counts are then 0.
        """
        import torch

        total = expert_count(model.config.to_dict())
        draws = torch.rand(len(mixtures), total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if not ids:
            nothing = torch.zeros(total, dtype=torch.int64)
            return {
                layer: Routing(nothing, nothing.double(), draw) for layer, draw in zip(mixtures, draws, strict=True)
            }
        outputs = self.criterion in WEIGHED
        sums = measure_routing(model, mixtures, ids, self.batch_size, pad_id, outputs)
        return {layer: Routing(*sums[layer], draw) for layer, draw in zip(mixtures, draws, strict=True)}

    def _figures(self, routings: Mapping[int, Routing], kept: "Mapping[int, Tensor]") -> Metrics:
        """Return figures of the tokens that were read, and warn of experts that none of them took."""
        if not self.passes:
            return {}
        idle = {layer: routing.tokens == 0 for layer, routing in routings.items()}
        unreached, stay = (sum(int(values.sum()) for values in found) for found in (idle.values(), [idle[layer][kept[layer]] for layer in idle]))  # fmt: skip
        if unreached:
            log.warning(
                "no calibration token took %d of %d experts, which count as the least important; %d of them stay.  More calibration_rows reach more",
                unreached, sum(len(values) for values in idle.values()), stay,
            )  # fmt: skip
        taken = sum(int(routing.tokens.sum()) for routing in routings.values())
        left = sum(int(routings[layer].tokens[places].sum()) for layer, places in kept.items())
        return {"unreached_experts": unreached, "rerouted_share": 1 - left / taken}


def check_finite(scores: "Mapping[int, Tensor]") -> None:
    """Raise TechniqueError if a layer's scores are not all numbers.

    scores: (experts,), by layer.
    """
    bad = [layer for layer, values in scores.items() if not bool(values.isfinite().all())]
    if bad:
        raise TechniqueError(
            f"layer {bad[0]}",
            f"importance is not finite in {len(bad)} of {len(scores)} layers",
            "finite outputs of the experts on the calibration rows",
            "check the model with evaluate/perplexity, or choose criterion=frequency",
        )


def write_choice(
    out: Path, routings: Mapping[int, Routing], scores: "Mapping[int, Tensor]", kept: "Mapping[int, Tensor]"
) -> dict[int, float]:
    """Write the experts kept, a line per expert, and each layer's share of the importance kept.

    scores: (experts,), by layer.
    kept: (kept,), indices, by layer.
    Returns the shares, by layer.  A layer without any importance counts as kept whole.
    """
    chosen = {layer: places.tolist() for layer, places in kept.items()}
    content = {"layers": [{"layer": layer, "experts": places} for layer, places in chosen.items()]}
    (out / SELECTION_FILE).write_text(json.dumps(content), encoding="utf-8")
    with (out / EXPERTS_FILE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "expert", "tokens", "score", "kept"])
        for layer, values in scores.items():
            lines = enumerate(zip(routings[layer].tokens.tolist(), values.tolist(), strict=True))
            writer.writerows(
                [layer, expert, tokens, f"{score:.9g}", int(expert in chosen[layer])]
                for expert, (tokens, score) in lines
            )
    sums = {layer: (float(values[kept[layer]].sum()), float(values.sum())) for layer, values in scores.items()}
    shares = {layer: part / whole if whole > 0 else 1.0 for layer, (part, whole) in sums.items()}
    write_shares(out / KEPT_PLOT.file, shares)
    return shares
