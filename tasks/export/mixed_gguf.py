"""Export to a GGUF file of several types, by measured sensitivity within a budget."""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export.budget import check_budget, choose_types, choose_uniform
from tasks.export.gguf_file import SECONDS_PER_WEIGHT, TOKEN_BYTES, FileTypes, GatedGguf, load_source
from tasks.export.sensitivity import Group, Meter, group_tensors
from tasks.export.source import dense_folder
from tasks.shared.errors import ConfigError, StillroomError, TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.gguf.places import OUTER, ROLES
from tasks.shared.gguf.types import NEEDS_IMPORTANCE, EmbeddingScheme, Scheme, bits
from tasks.shared.gguf.writer import plan_tensors
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.dense import check_dense
from tasks.shared.model.families import check_family, family_config
from tasks.shared.model.grids import Grid, grid_problems
from tasks.shared.model.widths import DIVISORS
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Plot, Port, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
SPENT_PLOT = Plot(
    file="bits.csv",
    title="bits spent",
    x="layer",
    y=(*ROLES, *OUTER),
    x_label="layer",
    y_label="bits per weight",
)
TYPES_FILE = "types.csv"
MEASURED_FILE = "measured.json"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MixedGguf(GatedGguf):
    """One .gguf file whose types differ by layer and role: bytes go where they matter most.

    Each group of tensors (attention, gate and up, down of a run of layers; embedding; head) is rounded alone to each type, by the
    file's own rounding, and its KL divergence from the source is measured on calibration rows.  Divergences are taken to add up; the
    choice with the least sum within the budget is exact.  It is then measured as a whole, and so is the best single type within the
    budget, which is written instead if it is closer to the source.
    """

    bits: Annotated[float, Field(gt=0, le=32)] = 5.5
    """Budget in bits per weight, scales included, over all matrices with embedding and head; norms and tokenizer come on top."""
    types: Annotated[tuple[Scheme, ...], Field(min_length=1)] = ("q3_k", "iq4_nl", "q5_0", "q6_k", "q8_0")
    """Types to choose from.  A type whose blocks do not fill the rows of a group is not offered to it: those in blocks of 256 (k, iq and
    tq types but iq4_nl) need rows that are multiples of 256."""
    sections: Annotated[int, Field(ge=1)] = 6
    """Runs of neighboring layers, within which matrices of one role share a type.  Measurements: 3 per section and type, and 1 or 2 for
    embedding and head."""
    calibration_rows: Annotated[int, Field(ge=1)] = 16
    """Conversations of the calibration split on which divergences are measured."""
    max_tokens: Annotated[int, Field(ge=8)] = 192
    """Most tokens per calibration conversation; longer ones are truncated."""

    spec: ClassVar[Spec] = Spec(
        summary="A llama.cpp file with a type for each part of each run of layers, by measured sensitivity within a budget of bytes",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,))},
        produces=Kind.ENGINE,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "gguf", "xllamacpp"),
        device="accelerator",
        accepts="dense",
        gives="packed",
        files="gguf",
        plots=(SPENT_PLOT,),
        paper="Cai et al. 2020, arXiv 2001.00281",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast a pass over the calibration rows per measurement, and a file of the budget."""
        size = work.size()
        shape = size.shape
        tokens = self.calibration_rows * self.max_tokens
        groups = len(ROLES) * min(self.sections, shape.layers) + max(
            1, round(size.outer / max(1, shape.vocabulary * shape.width))
        )
        passes = groups * len(self.types) + 3  # and the source, the mix and the single type
        seconds = passes * work.reading(size, tokens) + (len(self.types) + 3) * SECONDS_PER_WEIGHT * size.parameters
        norms = shape.width * (2 * shape.layers + 1)
        spent = min(self.bits, max(map(bits, self.types)))
        total = spent / 8 * (size.parameters - norms) + 4 * norms + TOKEN_BYTES * shape.vocabulary
        found = forecast_reading(work, seconds, size.parameters, replace(size, bytes=total))
        return replace(found, memory=found.memory + 4 * tokens * shape.vocabulary)

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse widths that no type's blocks fill."""
        odd = [
            f"{name} ({width})" for name, width in widths.items() if all(width % DIVISORS[kind] for kind in self.types)
        ]
        if odd:
            raise TechniqueError(
                "types",
                f"no blocks of {', '.join(self.types)} fill rows of {', '.join(odd)}",
                "a type whose blocks divide every width",
                "add iq4_nl and q8_0 (blocks of 32), or f16",
            )

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield errors: a budget below every type, types that need importance, a trained grid."""
        yield from grid_problems(where, inputs, upstream, self.keeps)
        if needy := sorted(NEEDS_IMPORTANCE & set(self.types)):
            yield ConfigError(
                f"{where}.types",
                f"{', '.join(needy)}, which needs the importance of every row",
                "types that round without it",
                "leave it out, or export/gguf with this scheme",
            )
        if self.bits < (least := min(map(bits, self.types))):
            yield ConfigError(
                f"{where}.bits",
                f"{self.bits:g} bits per weight, and the smallest of {', '.join(self.types)} takes {least:g}",
                f"{least:g} or more",
                f"bits={least:g}, or a smaller type in types",
            )

    def keeps(self, grid: Grid) -> bool:
        """Return False: a mix rounds most weights that a training put on a grid again."""
        return False

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the file and its records to `out`; on ParityError, `out` stays empty.

        The records are parity.json; types.csv, a line per group and type (group, weights, type, bytes, kl, chosen); and bits.csv, a line
        per layer.
        Returns what `GatedGguf.write` does, and budget_bytes, bits (per weight, as written), kl_sum (of the chosen types' measurements),
        kl_calibration (of all of them together, measured on the calibration rows), and uniform and kl_uniform: the best single type
        within the budget, and its measurement, if there is one.
        """
        import torch

        torch.set_num_threads(run.compute.threads)
        given = inputs.one("model").path
        check_dense(given)
        folder = dense_folder(given, run.scratch)
        check_family(self, family_config(folder), str(given))
        groups = group_tensors(plan_tensors(folder, "f32"), self.sections)
        sizes, weights = self.sizes(groups), sum(group.weights for group in groups)
        budget = int(self.bits * weights / 8)
        check_budget(sizes, budget, weights)
        rows = calibration_rows(inputs.one("calibration").path, self.calibration_rows)
        source = load_source(inputs, folder, run.compute.device)
        importance = self.importance(source)
        meter = Meter(source.model, groups, calibration_ids(source.tokenizer, rows, self.max_tokens), importance)
        losses = measure(meter.divergence, sizes, run.scratch / MEASURED_FILE)
        chosen, figures = choose(meter.divergence, sizes, losses, budget)
        source.model.to("cpu")  # type: ignore[arg-type]
        types = file_types(folder, groups, chosen)
        log.info("%s", describe(groups, chosen, types.bytes, weights))
        written = self.write(source, out, types, importance, run.compute.threads)
        write_types(out / TYPES_FILE, groups, sizes, losses, chosen)
        write_bits(out / SPENT_PLOT.file, groups, chosen)
        return written | {"budget_bytes": budget, "bits": round(types.bytes * 8 / weights, 4)} | figures

    def sizes(self, groups: Sequence[Group]) -> dict[str, dict[str, int]]:
        """Return the bytes by group and type, and log types that some groups cannot take.

        Raises TechniqueError for a group that can take none.
        """
        sizes = {group.name: group.sizes(self.types) for group in groups}
        self.check_widths(
            {tensor.name: tensor.row for group in groups if not sizes[group.name] for tensor in group.tensors}
        )
        for kind in self.types:
            lacking = [name for name, options in sizes.items() if kind not in options]
            if lacking:
                log.info(
                    "%s is not offered to %d of %d groups, whose rows its blocks of %d do not fill: %s",
                    kind,
                    len(lacking),
                    len(sizes),
                    DIVISORS[kind],
                    ", ".join(lacking),
                )
        return sizes


def measure(
    divergence: "Callable[[Mapping[str, str]], float]", sizes: Mapping[str, Mapping[str, int]], file: Path
) -> dict[str, dict[str, float]]:
    """Return the divergence of each group in each of its types, with all others as they are.

    file: JSON of the measurements so far, from which a run that was killed goes on.
    """
    found: dict[str, dict[str, float]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    with progress_bar("sensitivity", sum(map(len, sizes.values()))) as advance:
        for group, options in sizes.items():
            if group not in found:
                found[group] = {kind: divergence({group: kind}) for kind in options}
                file.write_text(json.dumps(found), encoding="utf-8")
            advance(len(options), note=group)
    return found


def choose(
    divergence: "Callable[[Mapping[str, str]], float]",
    sizes: Mapping[str, Mapping[str, int]],
    losses: Mapping[str, Mapping[str, float]],
    budget: int,
) -> tuple[dict[str, str], Metrics]:
    """Return the type of each group, and the figures of the choice.

    The figures are kl_sum and kl_calibration, and if a single type fits, uniform and kl_uniform (see `MixedGguf.__call__`).
    """
    chosen = choose_types(sizes, losses, budget)
    whole = divergence(chosen)
    uniform = choose_uniform(sizes, losses, budget)
    figures: Metrics = {}
    if uniform:
        single = dict.fromkeys(sizes, uniform)
        alone = whole if single == chosen else divergence(single)
        figures = {"uniform": uniform, "kl_uniform": alone}
        if alone < whole:
            log.warning(
                "%s in all groups is closer to the source (KL %.5f) than the mix (%.5f): it is written",
                uniform,
                alone,
                whole,
            )
            chosen, whole = single, alone
    added = sum(losses[group][kind] for group, kind in chosen.items())
    return chosen, {"kl_sum": added, "kl_calibration": whole} | figures


def file_types(folder: Path, groups: Sequence[Group], chosen: Mapping[str, str]) -> FileTypes:
    """Return the types of the file, whose main type is that of most weights."""
    spent: dict[str, int] = {}
    for group in groups:
        spent[chosen[group.name]] = spent.get(chosen[group.name], 0) + group.weights
    scheme = cast(Scheme, max(spent, key=lambda kind: spent[kind]))
    embedding = cast(EmbeddingScheme, chosen.get("embedding", "same"))
    by_place = {place: chosen[group.name] for group in groups for place in group.places}
    planned = plan_tensors(folder, scheme, embedding, fallback=False, types=by_place)
    return FileTypes(scheme, embedding, planned, fallback=False, by_place=by_place)


def describe(groups: Sequence[Group], chosen: Mapping[str, str], total: int, weights: int) -> str:
    """Return the choice in words: bits per weight, size, and the groups of each type."""
    names: dict[str, list[str]] = {}
    for group in groups:
        names.setdefault(chosen[group.name], []).append(group.name)
    parts = [f"{kind}: {', '.join(names[kind])}" for kind in sorted(names, key=bits)]
    return f"{total * 8 / weights:.2f} bits per weight, {total / 1e6:.1f} MB; {'; '.join(parts)}"


def write_types(
    file: Path,
    groups: Sequence[Group],
    sizes: Mapping[str, Mapping[str, int]],
    losses: Mapping[str, Mapping[str, float]],
    chosen: Mapping[str, str],
) -> None:
    """Write a line per group and type: bytes, divergence in nats per token, and the choice."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["group", "weights", "type", "bytes", "kl", "chosen"])
        for group in groups:
            for kind, size in sizes[group.name].items():
                loss = f"{losses[group.name][kind]:.6g}"
                writer.writerow([group.name, group.weights, kind, size, loss, int(chosen[group.name] == kind)])


def write_bits(file: Path, groups: Sequence[Group], chosen: Mapping[str, str]) -> None:
    """Write a line per layer: bits per weight of its roles, and of embedding and head."""
    spent = {place: bits(chosen[group.name]) for group in groups for place in group.places}
    layers = 1 + max(layer for layer, _ in spent)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([SPENT_PLOT.x, *SPENT_PLOT.y])
        for layer in range(layers):
            places = [*((layer, role) for role in ROLES), *((-1, role) for role in OUTER)]
            writer.writerow([layer, *(spent.get(place, "") for place in places)])
