"""Low rank: the best products of two thin matrices, stored dense, for study.

Source: SVD-LLM, Wang et al. 2024, arXiv 2403.07378, section 3.1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.prune.factoring.decomposition import (
    decompose,
    highest_rank,
    output_error,
    rank_by_energy,
    rank_by_ratio,
    reduced,
)
from tasks.prune.factoring.record import RANKS_FILE, Reduced, figures_of, tell, write_ranks
from tasks.prune.masking.pruning import Rows, prune_by_layer, warn_few_tokens
from tasks.prune.masking.settings import masking_spec, without_matrices
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Dimensions, Forecast, Workload, forecast_reading, with_compared
from tasks.shared.model.agreement import compare_logits, logits_of
from tasks.shared.model.calibration import calibration_ids, split_calibration
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family
from tasks.shared.model.input_statistics import gram, input_factor
from tasks.shared.model.masks import carry_masks, hold_zeros, read_masks, zeros_of
from tasks.shared.model.prunable import matrices_of, view_of
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SVD_COST = 40
"""Operations of a decomposition in float64 per weight and unit of the shorter side, relative to those of a matrix product."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LowRank:
    """Reduce the rank of every matrix in the decoder layers, and write the dense product.

    Neither file nor times become smaller: stock loaders take no factors.  Embedding, head, norms and biases stay as they are.  A matrix
    whose factors would hold as many weights as itself stays as it is, too.
    """

    method: Literal["whitened", "plain"] = "whitened"
    """Error that the product makes smallest.  whitened: of the matrix's outputs on the calibration rows.  plain: of its weights; a control."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of each matrix's weights that its two factors would hold."""
    energy: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the squares of each matrix's spectrum, whitened if the method is, that stays; overrides `ratio`.  0: by `ratio`."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of every matrix; overrides `ratio` and `energy`.  0: by these."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Damping added to the diagonal of the inputs' products, as a fraction of its mean; for the method whitened."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included.  The method plain reads them for its record only."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Conversations of the calibration split, held out of the calibration, on which the written model is compared with its source."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per calibration conversation; longer ones are truncated."""

    spec: ClassVar[Spec] = masking_spec(
        summary="Reduces the rank of every matrix, by its inputs or plainly; for study: file and speed stay as they are",
        calibration=Port((Kind.CORPUS,)),
        paper="Wang et al. 2024, arXiv 2403.07378",
        caveat="stock loaders take no factors: the dense products are stored, the file is as large as before and computes no faster",
    )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse matrices that are no linear layer, and ranks that leave nothing or all."""
        if (found := without_matrices(config)) is not None:
            return found
        try:
            self.check_ranks(shapes_of(Dimensions.from_config(config)))
        except TechniqueError as error:
            return Refusal(f"{error.where}={error.got}; wanted: {error.wanted}", error.fix)
        return None

    def check_ranks(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Raise TechniqueError for a ratio that leaves nothing, or a rank that changes nothing.

        shapes: (out, in) of every matrix; empty if they are unknown.
        """
        most = max((highest_rank(*shape) for shape in shapes), default=self.rank)
        if self.rank > most:
            raise TechniqueError(
                "rank",
                f"{self.rank}, and two factors of that rank hold as many weights as any of the matrices",
                f"1 to {most}",
                f"rank={most} or less",
            )
        if self.rank or self.energy:
            return
        if empty := [shape for shape in shapes if rank_by_ratio(*shape, self.ratio) == 0]:
            outputs, inputs = min(empty, key=lambda shape: highest_rank(*shape))
            raise TechniqueError(
                "ratio",
                f"{self.ratio} leaves nothing of a matrix of {outputs} x {inputs}",
                "at least rank 1",
                f"ratio={(outputs + inputs) / (outputs * inputs) + 5e-4:.3f} or more",
            )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the decompositions and two passes over the calibration rows."""
        size, tokens = work.size(), self.calibration_rows * self.max_tokens
        shapes = shapes_of(size.shape)
        operations = size.shape.layers * sum(2 * SVD_COST * out * of * min(out, of) for out, of in shapes)
        seconds = operations / work.flops + 2 * work.reading(size, tokens)
        found = forecast_reading(work, seconds, size.parameters, size.saved())
        widest = max((of for _, of in shapes), default=0)
        held = 4.0 * tokens * size.shape.width + 8.0 * 4 * widest**2  # states; products, factor and decomposition
        found = dataclasses.replace(found, memory=found.memory + held)
        return with_compared(found, work, self.check_rows, self.max_tokens)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the reduced model and ranks.csv, a line for each matrix, to `out`."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        source = inputs.one("model").path
        check_dense(source)
        rows, held_out = split_calibration(inputs.one("calibration").path, self.calibration_rows, self.check_rows)
        model, tokenizer = load_model(source, device=run.compute.device), load_tokenizer(source, chat=False)
        check_family(self, model.config.to_dict(), str(source))
        ids, checks = (calibration_ids(tokenizer, part, self.max_tokens) for part in (rows, held_out))
        warn_few_tokens(sum(map(len, ids)), matrices_of(model))
        source_logits, zeros = logits_of(model, checks), zeros_of(model, read_masks(source))
        found = self.reduce(model, ids, int(tokenizer.pad_token_id or 0))
        refilled = {"zeros_refilled": hold_zeros(model, zeros)} if zeros else {}
        parameters = model.num_parameters()
        save_model(model, tokenizer, out)
        del model
        write_ranks(out / RANKS_FILE, found)
        figures = figures_of(found, parameters) | {"size_bytes": weight_bytes(out)}
        tell(figures)
        measured = compare_logits(load_model(out), source_logits, checks, str(out))
        return {
            **figures, "calibration_tokens": sum(map(len, ids)), **measured, **refilled, **carry_masks(source, out)
        }  # fmt: skip

    def reduce(self, model: "PreTrainedModel", ids: Rows, pad_id: int) -> dict[str, Reduced]:
        """Reduce the matrices in place, layer after layer, and return what became of each.

        A layer's inputs are what the reduced layers before it give.
        Raises TechniqueError if all matrices stay as they are.
        """
        self.check_ranks([(view.shape[0], view.shape[1]) for view in map(view_of, matrices_of(model).values())])
        found: dict[str, Reduced] = {}

        def cut(weights: "Mapping[str, Tensor]", products: "Mapping[str, Tensor]") -> None:
            found.update(self.cut_layer(weights, products))

        prune_by_layer(model, ids, pad_id, gram, cut)
        if not any(each.rank for each in found.values()):
            raise TechniqueError(
                "energy", f"{self.energy} leaves every matrix as it is", "less than all", "a lower energy, or energy=0 and a ratio"
            )  # fmt: skip
        return found

    def cut_layer(self, weights: "Mapping[str, Tensor]", products: "Mapping[str, Tensor]") -> dict[str, Reduced]:
        """Reduce the matrices of one layer in place.

        weights: each (out, in).  products: each (in, in); matrices with the same inputs share one, and its factor.
        """
        factors: dict[int, Tensor] = {}
        found: dict[str, Reduced] = {}
        for name, weight in weights.items():
            gathered = products[name]
            if self.method == "whitened" and id(gathered) not in factors:
                factors[id(gathered)] = input_factor(gathered, self.damping)
            check_numbers(name, weight)
            directions, spectrum = decompose(weight, factors.get(id(gathered)))
            outputs, inputs = weight.shape
            rank = self.rank_of(outputs, inputs, spectrum)
            if rank > highest_rank(outputs, inputs):
                found[name] = Reduced((outputs, inputs), 0, 1.0, 0.0)
                continue
            product = reduced(weight, directions, rank)
            error = output_error(weight.double() - product, weight, gathered)
            squares = spectrum.square()
            found[name] = Reduced((outputs, inputs), rank, float(squares[:rank].sum() / squares.sum().clamp(min=1e-300)), error)  # fmt: skip
            weight.copy_(product)
        return found

    def rank_of(self, outputs: int, inputs: int, spectrum: "Tensor") -> int:
        """Return the rank of a matrix by the settings.

        outputs, inputs: its sizes.  spectrum: (k,), descending.
        """
        if self.rank:
            return self.rank
        return rank_by_energy(spectrum, self.energy) if self.energy else rank_by_ratio(outputs, inputs, self.ratio)


def shapes_of(shape: Dimensions) -> list[tuple[int, int]]:
    """Return (out, in) of the matrices of a layer; empty if the configuration names no sizes."""
    wide, ends = shape.width, (shape.query, shape.value, shape.feed_forward)
    if not all((wide, *ends)):
        return []
    return [(wide, shape.query), (wide, shape.feed_forward), *((end, wide) for end in (*ends, shape.value, ends[2]))]


def check_numbers(name: str, weight: "Tensor") -> None:
    """Raise TechniqueError for weights that are not finite, which have no decomposition.

    weight: (out, in), of the matrix `name`.
    """
    if not bool(weight.isfinite().all()):
        raise TechniqueError(
            name, "its weights are not finite", "finite weights", "check the model with evaluate/perplexity"
        )
