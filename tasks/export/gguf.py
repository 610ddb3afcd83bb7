"""Export to llama.cpp's GGUF with a parity gate against the source model."""

import logging
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.export.gguf_file import SECONDS_PER_WEIGHT, TOKEN_BYTES, FileTypes, GatedGguf, load_source
from tasks.export.source import dense_folder, matrix_scales
from tasks.shared.errors import ConfigError, StillroomError, TechniqueError
from tasks.shared.forecast import Dimensions, Forecast, Workload, forecast_reading
from tasks.shared.gguf.blocks import COPYING, is_copied, pack
from tasks.shared.gguf.places import VOCABULARY_NAMES
from tasks.shared.gguf.types import (
    FLOATS,
    NEEDS_IMPORTANCE,
    SMALLEST_FALLBACK,
    EmbeddingScheme,
    PlannedTensor,
    Scheme,
    bits,
    check_plan,
    describe_fallbacks,
    fitting_type,
    plan_tensor,
)
from tasks.shared.gguf.writer import plan_tensors
from tasks.shared.model.families import CONV1D, check_family, family_config, is_mixture
from tasks.shared.model.grids import BLOCK, SERVED, Grid, GridName, find_levels, grid_problems
from tasks.shared.model.weight_files import read_tensors
from tasks.shared.model.widths import DIVISORS, model_widths, shortened
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

log = logging.getLogger(__name__)
UNWEIGHTED = FLOATS | {"q8_0", "nvfp4", "mxfp4", "tq1_0"}
"""Types that are rounded without importance."""
ROWS_READ = 64
"""Rows of a matrix by which its grid is recognized."""
FP4_GROUPS: Mapping[int, Literal["nvfp4", "mxfp4"]] = {16: "nvfp4", 32: "mxfp4"}
"""Types of 4-bit floats by the weights that share a scale."""
X86 = ("x86_64", "AMD64")
FINE = 6.0
"""Bits per weight above which rounding 4-bit weights again changes next to nothing."""

TYPE_OF_GRID: Mapping[GridName, Scheme] = {
    "tq2_0": "tq2_0", "q2_0": "q2_0", "q4_0": "q4_0", "iq4_nl": "iq4_nl", "int4_asymmetric": "q4_1",
}  # fmt: skip
"""Types that hold the levels of dense weights unchanged, in the order in which they are tried: weights of 2 bits are on the grids of 4 bits, too."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gguf(GatedGguf):
    """One .gguf file with tokenizer and chat template, refused if it deviates from its source.

    A source of 4-bit groups of 32, 64 or 128 is copied to q4_0 (symmetric) or q4_1 (either kind), and one of symmetric 8-bit groups to
    q8_0, with unchanged integers and so keeps its calibration, in contrast to a dense source, which is rounded.  So is one whose weights
    are on a grid already (`quantize/gptq_levels`, or `qat` in training), to q4_0, q4_1, iq4_nl, q2_0 or tq2_0.
    """

    scheme: Scheme | Literal["auto"] = "auto"
    """Type of the layers' matrices.  auto: the type that copies the source's integers (q4_1 for 4 bits with zero points, q4_0 without,
    q8_0 for 8 bits), 4-bit floats (nvfp4, in families in which llama.cpp computes with its scales; mxfp4) or levels (of `gptq_levels` and
    `qat`, found in the weights); q4_0 for any other source.  q4_0 (4.5 bits per weight) is read everywhere; iq4_nl (4.5) is closer to the
    source, in llama.cpp only.  Types in blocks of 256 weights (k, iq and tq types) need rows that are multiples of 256."""
    embedding: EmbeddingScheme = "q8_0"
    """Type of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""
    fallback: bool = True
    """Round matrices whose rows the scheme's blocks do not fill to another type (iq4_nl, or the next larger one); false refuses them."""

    spec: ClassVar[Spec] = Spec(
        summary="A llama.cpp file of any type that must tokenize and answer like its source; copies 4-bit integers unchanged",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "gguf", "xllamacpp"),
        accepts="packed",
        gives="packed",
        files="gguf",
    )

    @property
    def layers(self) -> Scheme:
        """Type of the layers' matrices; for `auto`, whose types have the same blocks, q4_1."""
        return "q4_1" if self.scheme == "auto" else self.scheme

    @property
    def vocabulary(self) -> str:
        """Type of embedding and head."""
        return self.layers if self.embedding == "same" else self.embedding

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; bytes by the types that matrices of these widths get."""
        size = work.size()
        if self.scheme == "auto":
            return replace(self, scheme=forecast_type(size.levels)).forecast(work)
        shape = size.shape
        norms = shape.width * (2 * shape.layers + 1)
        rows = layer_rows(shape)
        mean = sum(count * bits(fitting_type(self.layers, row) or "f16") for row, count in rows.items()) / max(1, sum(rows.values()))  # fmt: skip
        outer = bits(fitting_type(self.vocabulary, shape.width) or "f16")
        matrices = max(0.0, size.parameters - size.outer - norms) * (mean or bits(self.layers))
        total = (matrices + outer * size.outer) / 8 + 4 * norms + TOKEN_BYTES * shape.vocabulary
        return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, replace(size, bytes=total))

    def model_notes(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield a line if blocks do not fill rows of the layers: the type instead, and its cost."""
        if self.scheme == "auto" or not model_widths(config):
            return
        rows = layer_rows(Dimensions.from_config({**config, **(config.get("text_config") or {})}))
        types = {row: fitting_type(self.scheme, row) for row in rows}
        fallen = sorted(row for row, name in types.items() if name not in ("", self.scheme))
        if not fallen or not all(types.values()):
            return
        total = sum(rows.values())
        mean = sum(bits(types[row]) * count for row, count in rows.items()) / total
        yield (
            f"{self.scheme} becomes {types[fallen[0]]} in {sum(rows[row] for row in fallen) / total:.0%} of the layers' weights, whose rows of "
            f"{', '.join(map(str, fallen))} its blocks of {DIVISORS[self.scheme]} do not fill: {mean:.2f} bits per weight on average, "
            f"{bits(SMALLEST_FALLBACK):.2f} with scheme={SMALLEST_FALLBACK}"
        )

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse widths that no block of the scheme, or of its fallback, fills."""
        check_plan(plan_tensor(name, width, width, self.layers, self.fallback) for name, width in widths.items())
        if "hidden_size" in widths:
            check_plan(
                [plan_tensor("embedding", widths["hidden_size"], widths["hidden_size"], self.vocabulary, self.fallback)]
            )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse what `GatedGguf` refuses, and matrices without the importance that the type needs."""
        if found := super().refuses(config):
            return found
        plain = "its experts are" if is_mixture(config) else "its matrices are Conv1D" if config.get("model_type") in CONV1D else ""  # fmt: skip
        fitting = [row for row in model_widths(config).values() if fitting_type(self.layers, row) == self.layers]
        if self.layers in NEEDS_IMPORTANCE and plain and fitting:
            return Refusal(
                f"{self.layers} is rounded by importance only, which is measured on torch.nn.Linear, and {plain} not",
                "scheme=iq2_s, or another type that rounds without importance",
            )
        return None

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield errors: a type without the importance it needs, a model trained on another grid."""
        yield from grid_problems(where, inputs, upstream, self.keeps)
        if self.scheme in NEEDS_IMPORTANCE and not (inputs.get("calibration") and self.importance_rows):
            yield self._needs_importance(f"{where}.scheme")
        if self.vocabulary in NEEDS_IMPORTANCE:
            yield ConfigError(
                f"{where}.embedding",
                f"{self.vocabulary}, which needs the importance of every row",
                "a larger type",
                "embedding=iq4_nl or q8_0",
            )

    def keeps(self, grid: Grid) -> bool:
        """Return True if the scheme holds the grid's levels and scales, or has bits to spare."""
        if self.scheme == "auto":
            return grid.group % BLOCK == 0
        return bits(self.scheme) > FINE or (
            self.scheme in SERVED[grid.name] and grid.group % DIVISORS[self.scheme] == 0
        )

    def _needs_importance(self, where: str) -> ConfigError:
        return ConfigError(
            where,
            f"{self.scheme} is rounded by importance only, and there is none",
            "a corpus at the port `calibration`, and importance_rows above 0",
            "inputs.calibration=corpus importance_rows=32, or scheme=iq2_s",
        )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.gguf and parity.json to `out`; on ParityError, `out` stays empty.

        Returns fallback_matrices, and what `GatedGguf.write` does.
        """
        import torch

        torch.set_num_threads(run.compute.threads)
        given = inputs.one("model").path
        if self.scheme == "auto":
            return replace(self, scheme=copying_type(given))(inputs, out, run)
        folder = dense_folder(given, run.scratch)
        check_family(self, family_config(folder), str(given))
        types = FileTypes(self.layers, self.embedding, self.planned(folder), self.fallback)
        warn_of_zero_points(given, self.layers)
        source = load_source(inputs, folder)
        weighted = weighted_matrices(folder, types.planned)
        importance = self.importance(source) if weighted else {}
        if source.corpus is not None and self.importance_rows:
            check_importance(weighted, importance)
        elif self.layers in NEEDS_IMPORTANCE:
            raise self._needs_importance("scheme")
        fallen = sum(tensor.type != tensor.wanted for tensor in types.planned)
        return self.write(source, out, types, importance, run.compute.threads) | {"fallback_matrices": fallen}

    def planned(self, source: Path) -> list[PlannedTensor]:
        """Return the file's matrices with their types, and log their size and every fallback."""
        tensors = plan_tensors(source, self.layers, self.embedding, self.fallback)
        check_plan(tensors)
        total, weights = sum(tensor.bytes for tensor in tensors), sum(tensor.weights for tensor in tensors)
        log.info("%d matrices in %.1f MB, %.2f bits per weight", len(tensors), total / 1e6, total * 8 / max(1, weights))
        for line in describe_fallbacks(tensors):
            log.warning("%s", line)
        if platform.machine() in X86 and any(tensor.type == "q2_0" for tensor in tensors):
            log.warning(
                "llama.cpp computes q2_0 on x86 without vector instructions: several times slower than 4 bits; tq2_0 has them"
            )
        return tensors


def layer_rows(shape: Dimensions) -> dict[int, int]:
    """Return a layer's weights by the size of their rows."""
    inner = shape.expert_width if shape.experts else shape.feed_forward
    neurons = max(1, shape.experts) * inner
    rows = {shape.width: shape.width * (shape.query + 2 * shape.value + 2 * neurons)}
    for row, outputs in ((shape.query, shape.query), (inner, neurons)):
        rows[row] = rows.get(row, 0) + outputs * shape.width
    return rows


def packed_groups(source: Path) -> list[dict[str, Any]]:
    """Return the settings of packed weights by group of layers; none for a dense model."""
    from tasks.shared.model.weight_files import read_json

    settings = read_json(source / "config.json").get("quantization_config") or {} if source.is_dir() else {}
    return [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]


def forecast_type(levels: str) -> Scheme:
    """Return the type that `copying_type` will find in a model that is not there yet.

    levels: as in `Size`.
    """
    served = {str(grid): types[0] for grid, types in SERVED.items()} | {name: name for name in FP4_GROUPS.values()}
    return cast(Scheme, served.get(levels, "q8_0" if levels else "q4_0"))


def copying_type(source: Path) -> Scheme:
    """Return the type that copies a model's weights; q4_0 if they are on no grid.

    nvfp4 without the scales of its matrices is farther from such a source than iq4_nl, which is taken in families without them.
    """
    if not source.is_dir():
        return "q4_0"
    groups = packed_groups(source)
    if not groups:
        return _type_of_levels(source)
    floats = {_float_type(weights) for weights in groups}
    if len(floats) == 1 and (found := floats.pop()):
        return "iq4_nl" if found == "nvfp4" and not matrix_scales(source) else found
    if any(weights.get("num_bits") != 4 for weights in groups):
        return "q8_0"
    return "q4_1" if any(weights.get("symmetric") is False for weights in groups) else "q4_0"


def _float_type(weights: Mapping[str, Any]) -> Literal["nvfp4", "mxfp4"] | None:
    """Return the type of a group of layers in 4-bit floats; None for others."""
    if weights.get("type") != "float" or weights.get("num_bits") != 4:
        return None
    return FP4_GROUPS.get(weights.get("group_size") or 0)


def _type_of_levels(source: Path) -> Scheme:
    """Return the type that holds a dense model's levels.

    It is found by the smallest matrix of the layers whose rows fill the type's blocks.
    """
    matrices = [matrix for matrix in plan_tensors(source, "q4_0") if not VOCABULARY_NAMES.search(matrix.name)]
    for name in TYPE_OF_GRID.values():
        fitting = [replace(matrix, type=name) for matrix in matrices if matrix.row % DIVISORS[name] == 0]
        if fitting and holds_levels(source, [min(fitting, key=lambda matrix: matrix.weights)]):
            return name
    return "q4_0"


def holds_levels(source: Path, matrices: Iterable[PlannedTensor]) -> bool:
    """Return True if the 4-bit and 2-bit types of a dense model's matrices hold their levels.

    The first rows of each matrix are looked at.  Matrices of other types are left out; False if there are none of these.
    """
    grids = {name: grid for grid, name in TYPE_OF_GRID.items()}
    wanted = {matrix.name: matrix.type for matrix in matrices if matrix.type in grids}
    for name, weight in read_tensors(source, list(wanted)):
        size = DIVISORS[wanted[name]]
        if weight.shape[-1] % size:  # Conv1D has inputs first
            return False
        blocks = weight.float().flatten(0, -2)[:ROWS_READ].unflatten(-1, (-1, size))
        if find_levels(blocks, grids[wanted[name]]) is None:
            return False
    return bool(wanted)


def weighted_matrices(source: Path, matrices: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Return matrices that are rounded by importance: types do not hold their levels.

    The first rows of each are packed and compared.

    source: folder of dense weights.
    """
    wanted = {matrix.name: matrix for matrix in matrices if matrix.type not in UNWEIGHTED}
    copying = [name for name, matrix in wanted.items() if matrix.type in COPYING]
    for name, weight in read_tensors(source, copying):
        if weight.shape[-1] != wanted[name].row:  # Conv1D has inputs first
            continue
        rows = weight.flatten(0, -2)[:ROWS_READ].float().numpy()
        if is_copied(rows, pack(rows, wanted[name].type), wanted[name].type):
            del wanted[name]
    return list(wanted.values())


def check_importance(matrices: Sequence[PlannedTensor], importance: Collection[str]) -> None:
    """Refuse types that need importance for matrices without it; warn of others.

    matrices: those that are rounded by importance.  importance: names of the weights that have it.
    """
    lacking = [one for one in matrices if one.name not in importance and not VOCABULARY_NAMES.search(one.name)]
    if needy := [matrix.name for matrix in lacking if matrix.type in NEEDS_IMPORTANCE]:
        raise TechniqueError(
            "scheme", f"no importance, which is measured on torch.nn.Linear, of {shortened(needy)}", "types that round without it",
            "scheme=iq2_s, or another larger type",
        )  # fmt: skip
    if lacking:
        log.warning(
            "%d of %d matrices are rounded without importance, since they are no torch.nn.Linear: %s",
            len(lacking), len(matrices), shortened([matrix.name for matrix in lacking]),
        )  # fmt: skip


def warn_of_zero_points(source: Path, scheme: str) -> None:
    """Warn if integers with zero points are rounded again, since q4_0 has none."""
    if scheme == "q4_0" and any(weights.get("symmetric") is False for weights in packed_groups(source)):
        log.warning(
            "the integers of %s have zero points: q4_0 rounds them again, scheme=q4_1 takes them over", source.name
        )
