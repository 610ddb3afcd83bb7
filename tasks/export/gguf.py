"""Export to llama.cpp's GGUF with a parity gate against the source model."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.importance import input_energy
from tasks.export.source import dense_folder
from tasks.shared.errors import ConfigError, ParityError, StillroomError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.gguf.support import attended, unsupported
from tasks.shared.gguf.types import (
    FLOATS,
    NEEDS_IMPORTANCE,
    WITH_ZERO,
    EmbeddingScheme,
    PlannedTensor,
    Scheme,
    bits,
    check_plan,
    describe_fallbacks,
    fitting_type,
    plan_tensor,
)
from tasks.shared.gguf.writer import plan_tensors, write_gguf
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.families import check_family, family_config
from tasks.shared.model.grids import BLOCK, SERVED, Grid, grid_problems
from tasks.shared.model.masks import read_masks
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CONTEXT = 2048
SECONDS_PER_WEIGHT = 1e-7
"""Time to convert and compare, by measurement on two CPU cores."""
TOKEN_BYTES = 36
"""Bytes of a token in the file's header: its text, type and merges (SmolLM2's)."""
UNWEIGHTED = FLOATS | {"q8_0", "nvfp4", "mxfp4", "tq2_0", "tq1_0"}
"""Types that are rounded without importance."""
FINE = 6.0
"""Bits per weight above which rounding 4-bit weights again changes next to nothing."""
MAX_MISS = 0.01
"""Largest difference of a file's size from the plan's, as a share."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gguf:
    """One .gguf file with tokenizer and chat template, refused if it deviates from its source.

    A source of 4-bit groups of 32, 64 or 128 is copied to q4_0 (symmetric) or q4_1 (either kind) with unchanged integers and so keeps
    its calibration, in contrast to a dense source, which is rounded.  So is one that was trained on a grid (`qat`), to q4_0, q4_1 or iq4_nl.
    """

    scheme: Scheme | Literal["auto"] = "auto"
    """Type of the layers' matrices.  auto: the type that copies the source's integers (q4_1 for 4 bits with zero points, q4_0 without,
    q8_0 for 8 bits); q4_0 for a dense source.  q4_0 (4.5 bits per weight) is read everywhere; iq4_nl (4.5) is closer to the source, in
    llama.cpp only.  Types in blocks of 256 weights (k, iq and tq types) need rows that are multiples of 256."""
    embedding: EmbeddingScheme = "q8_0"
    """Type of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""
    fallback: bool = True
    """Round matrices whose rows the scheme's blocks do not fill to another type (iq4_nl, or the next larger one); false refuses them."""
    importance_rows: Annotated[int, Field(ge=0)] = 32
    """Calibration conversations for the column importance that rounding is fitted to; 0, or no corpus: plain rounding."""
    prompts: Annotated[int, Field(ge=1, le=256)] = 16
    """Conversations to compare on."""
    tokens: Annotated[int, Field(ge=1, le=128)] = 8
    """Continuation tokens per conversation; each is one compared position."""
    top: Annotated[int, Field(ge=2, le=1000)] = 64
    """Top tokens compared individually in the divergence; all others count as one outcome."""
    min_top1: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Minimum share of positions with the same top token in file and source.

    Measured on the raw 135M model: f16 100 %, q4_1 96 % (its weights come from q4_1), q4_0 73 %.
    """
    max_kl: Annotated[float, Field(gt=0)] = 0.5
    """Maximum mean KL divergence from the source, nats per position."""

    spec: ClassVar[Spec] = Spec(
        summary="A llama.cpp file of any type that must tokenize and answer like its source; copies 4-bit integers unchanged",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "gguf", "xllamacpp"),
        gives="packed",
        files="gguf",
    )

    @property
    def layers(self) -> Scheme:
        """Type of the layers' matrices; for plans with `auto`, which do not know the source, q4_1."""
        return "q4_1" if self.scheme == "auto" else self.scheme

    @property
    def vocabulary(self) -> str:
        """Type of embedding and head."""
        return self.layers if self.embedding == "same" else self.embedding

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; bytes by the types that matrices of these widths get."""
        size = work.size()
        shape = size.shape
        norms = shape.width * (2 * shape.layers + 1)
        rows = {shape.width: shape.width * (shape.query + 2 * shape.value + 2 * shape.feed_forward)}
        for row in (shape.query, shape.feed_forward):
            rows[row] = rows.get(row, 0) + row * shape.width
        mean = sum(count * bits(fitting_type(self.layers, row) or "f16") for row, count in rows.items()) / max(1, sum(rows.values()))  # fmt: skip
        outer = bits(fitting_type(self.vocabulary, shape.width) or "f16")
        matrices = max(0.0, size.parameters - size.outer - norms) * (mean or bits(self.layers))
        total = (matrices + outer * size.outer) / 8 + 4 * norms + TOKEN_BYTES * shape.vocabulary
        return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, replace(size, bytes=total))

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse widths that no block of the scheme, or of its fallback, fills."""
        check_plan(plan_tensor(name, width, width, self.layers, self.fallback) for name, width in widths.items())
        if "hidden_size" in widths:
            check_plan(
                [plan_tensor("embedding", widths["hidden_size"], widths["hidden_size"], self.vocabulary, self.fallback)]
            )

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
        scheme = "q4_0" if self.scheme == "auto" else self.scheme  # the model is dense
        return bits(scheme) > FINE or (scheme in SERVED[grid.name] and grid.group % BLOCK == 0)

    def _needs_importance(self, where: str) -> ConfigError:
        return ConfigError(
            where,
            f"{self.scheme} is rounded by importance only, and there is none",
            "a corpus at the port `calibration`, and importance_rows above 0",
            "inputs.calibration=corpus importance_rows=32, or scheme=iq2_s",
        )

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models that llama.cpp computes otherwise than transformers."""
        return unsupported(config)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.gguf and parity.json to `out`; on ParityError, `out` stays empty.

        Returns scheme, size_bytes, tensor_bytes (of the matrices, as planned), fallback_matrices, source_bytes, top1_agreement (0..1),
        kl_to_source (nats per position) and positions.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        given, corpus = inputs.one("model").path, inputs.get("calibration")
        if self.scheme == "auto":
            return replace(self, scheme=copying_type(given))(inputs, out, run)
        source = dense_folder(given, run.scratch)
        check_family(self, family_config(source), str(given))
        tensors = self.planned(source)
        planned = sum(tensor.bytes for tensor in tensors)
        scheme = self.layers
        warn_of_zero_points(given, scheme)
        warn_of_masks(given, tensors)
        model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
        importance = None
        if corpus is not None and self.importance_rows and self.uses_importance(packed=source != given):
            rows = calibration_rows(corpus.path, self.importance_rows)
            importance = input_energy(model, calibration_ids(tokenizer, rows, CONTEXT))
        elif scheme in NEEDS_IMPORTANCE:
            raise self._needs_importance("scheme")
        file = out / "model.gguf"
        try:
            name = inputs.one("model").name
            written = write_gguf(source, file, scheme, self.embedding, name, importance, self.fallback)
            check_size(file, written, planned)
            found = self.compare(model, tokenizer, file, None if corpus is None else corpus.path, run.compute.threads)
            parity.check_floor(found, self.min_top1, self.max_kl, f"{file.name} ({scheme})")
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        log.info(
            "parity: same top token at %.1f %% of %d positions, KL %.4f nats",
            100 * found.top1,
            len(found.positions),
            found.divergence,
        )
        settings = {
            "scheme": scheme,
            "embedding": self.embedding,
            "min_top1": self.min_top1,
            "max_kl": self.max_kl,
            "tokenizer": "same",
            "types": dict(Counter(tensor.type for tensor in written)),
        }
        (out / "parity.json").write_text(json.dumps(settings | found.as_dict(), indent=1), encoding="utf-8")
        return {
            "scheme": scheme,
            "size_bytes": file.stat().st_size,
            "tensor_bytes": planned,
            "fallback_matrices": sum(tensor.type != tensor.wanted for tensor in written),
            "source_bytes": weight_bytes(given),
            "top1_agreement": found.top1,
            "kl_to_source": found.divergence,
            "positions": len(found.positions),
        }

    def planned(self, source: Path) -> list[PlannedTensor]:
        """Return the file's matrices with their types, and log their size and every fallback."""
        tensors = plan_tensors(source, self.layers, self.embedding, self.fallback)
        check_plan(tensors)
        total, weights = sum(tensor.bytes for tensor in tensors), sum(tensor.weights for tensor in tensors)
        log.info("%d matrices in %.1f MB, %.2f bits per weight", len(tensors), total / 1e6, total * 8 / max(1, weights))
        for line in describe_fallbacks(tensors):
            log.warning("%s", line)
        return tensors

    def uses_importance(self, packed: bool) -> bool:
        """Return True if a type is rounded by importance.

        packed: the source's weights are integers, which q4_0 and q4_1 take over unchanged.
        """
        return not {self.layers, self.vocabulary} <= UNWEIGHTED | (set(SERVED["int4_symmetric"]) if packed else set())

    def compare(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        file: Path,
        corpus: Path | None,
        threads: int,
    ) -> parity.Parity:
        """Serve the file and compare it with its source.

        Raises ParityError if it tokenizes differently or does not answer.
        """
        from tasks.shared.engines.llama_engine import LLAMA_CPP
        from tasks.shared.engines.protocol import Opening

        texts, answers = parity.asked_texts(tokenizer, corpus, self.prompts)
        context = min(CONTEXT, attended(model.config.to_dict()) or CONTEXT)
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"][-(context - self.tokens) :] for text in texts]
        with LLAMA_CPP.open(file, Opening(threads, context=CONTEXT)) as session:
            parity.check_tokenizer(session, tokenizer, [*texts, *answers], str(file))
            return parity.measure_parity(model, tokenizer, prompts, session, self.tokens, self.top)


def check_size(file: Path, written: Sequence[PlannedTensor], planned: int) -> None:
    """Raise ParityError if the file's matrices take other bytes than planned before the work."""
    made = sum(tensor.bytes for tensor in written)
    if abs(made - planned) > MAX_MISS * planned:
        got = f"its matrices take {made:,} bytes; {planned:,} were planned"
        raise ParityError(
            file.name, got, "the planned size", "report this: the plan does not know a matrix of this family"
        )


def packed_groups(source: Path) -> list[dict[str, Any]]:
    """Return the settings of packed weights by group of layers; none for a dense model."""
    from tasks.shared.model.weight_files import read_json

    settings = read_json(source / "config.json").get("quantization_config") or {} if source.is_dir() else {}
    return [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]


def copying_type(source: Path) -> Scheme:
    """Return the type that copies a model's integers; q4_0 for a dense one."""
    groups = packed_groups(source)
    if any(weights.get("num_bits") != 4 for weights in groups):
        return "q8_0"
    return "q4_1" if any(weights.get("symmetric") is False for weights in groups) else "q4_0"


def warn_of_zero_points(source: Path, scheme: str) -> None:
    """Warn if integers with zero points are rounded again, since q4_0 has none."""
    if scheme == "q4_0" and any(weights.get("symmetric") is False for weights in packed_groups(source)):
        log.warning(
            "the integers of %s have zero points: q4_0 rounds them again, scheme=q4_1 takes them over", source.name
        )


def warn_of_masks(source: Path, tensors: Sequence[PlannedTensor]) -> None:
    """Warn if weights that pruning masked do not stay zero."""
    masks = read_masks(source)
    lost = sorted({tensor.type for tensor in tensors if masks and tensor.name in masks.tensors} - WITH_ZERO)
    if lost:
        log.warning(
            "%s has masked weights, and %s has no exact zero: they become small numbers; scheme=q4_0, q5_0 or q8_0 keeps them zero",
            source.name, ", ".join(lost),
        )  # fmt: skip
