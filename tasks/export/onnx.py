"""Export to ONNX for ONNX Runtime, with a parity gate against the source model."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.onnx_blocks import Bits
from tasks.export.onnx_gate import Asked, ask_isolated
from tasks.export.source import dense_folder
from tasks.shared.errors import ParityError, TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.families import check_family, family_config, is_mixture
from tasks.shared.model.onnx_files import GRAPH, WEIGHTS, onnx_weight_files, write_description
from tasks.shared.model.widths import GROUP_SIZES, choose_group_size
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Form = Literal["float32", "int8", "int4"]
BITS: Mapping[str, Bits | None] = {"float32": None, "int8": 8, "int4": 4}
CONTEXT = 2048
SMALL = 1024
"""Bytes up to which a constant stays in the graph's file."""
SCALE_BITS = 32
TRACING_S = 25.0
"""Rough time to import the exporter and trace a graph."""
SECONDS_PER_WEIGHT = 1e-7
"""Rough time to quantize, write and compare."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Onnx:
    """A folder for ONNX Runtime on the CPU, refused if it deviates from its source.

    It holds graph, weights and tokenizer.  The graph reads and extends a key-value cache.  4-bit integers of a source that a calibrated
    quantizer wrote are taken over unchanged; a dense source is rounded.
    """

    scheme: Form = "int4"
    """Weights of the layers: float32, or integers in groups with a float32 scale (MatMulNBits)."""
    embedding: Form = "int8"
    """Weights of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""
    group_size: Annotated[int, Field(ge=0)] = 32
    """Weights that share one scale, a power of two from 16; 0 takes the largest of 128, 64 and 32 that divides every row."""
    symmetric: bool = False
    """Scales only; false adds a zero point per group."""
    activations: Literal["float32", "int8"] = "float32"
    """Arithmetic of quantized layers: "int8" rounds their inputs too, in groups, which is faster and less exact."""
    prompts: Annotated[int, Field(ge=1, le=256)] = 16
    """Conversations to compare on."""
    tokens: Annotated[int, Field(ge=1, le=128)] = 8
    """Continuation tokens per conversation; each is one compared position."""
    top: Annotated[int, Field(ge=2, le=1000)] = 64
    """Top tokens compared individually in the divergence; all others count as one outcome."""
    min_top1: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Minimum share of positions with the same top token in graph and source."""
    max_kl: Annotated[float, Field(gt=0)] = 0.5
    """Maximum mean KL divergence from the source, nats per position."""
    min_same_text: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum share of conversations that graph and source continue with the same text, greedily, over `tokens` tokens."""

    spec: ClassVar[Spec] = Spec(
        summary="A graph for ONNX Runtime, in float32 or with 8- or 4-bit weights, that must answer like its source (extra `onnx`)",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=(
            "torch",
            "transformers",
            "tokenizers",
            "compressed-tensors",
            "gguf",
            "onnx",
            "onnxscript",
            "onnxruntime",
        ),
        extra="onnx",
        accepts="packed",
        gives="packed",
        files="onnx",
    )

    def __post_init__(self) -> None:
        """Raise TechniqueError for a group that ONNX Runtime has no kernel for."""
        if self.group_size and (self.group_size < 16 or self.group_size & (self.group_size - 1)):
            raise TechniqueError("group_size", str(self.group_size), "0, or a power of two from 16", "group_size=32")

    @property
    def quantized(self) -> bool:
        """True if any matrix is stored as integers."""
        return {self.scheme, self.embedding} != {"float32"}

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; bytes by the bits of layers and of embedding and head."""
        size = work.size()
        widths = (size.shape.width, size.shape.query, size.shape.feed_forward)
        fitting = [group for group in GROUP_SIZES if all(width % group == 0 for width in widths)]
        group = self.group_size or next(iter(fitting), GROUP_SIZES[-1])
        norms = size.shape.width * (2 * size.shape.layers + 1)
        layers = max(0.0, size.parameters - size.outer - norms)
        total = self._bits(self.scheme, group) * layers + self._bits(self.embedding, group) * size.outer + 32 * norms
        seconds = TRACING_S + SECONDS_PER_WEIGHT * size.parameters
        return forecast_reading(work, seconds, 2 * size.parameters, replace(size, bytes=total / 8))

    def _bits(self, form: Form, group: int) -> float:
        bits = BITS[form]
        return 32.0 if bits is None else bits + (SCALE_BITS + (0 if self.symmetric else bits)) / group

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse a group size that does not divide a known width."""
        if widths and self.quantized:
            choose_group_size(widths, self.group_size)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse integer weights of experts, which are one tensor of three axes."""
        if is_mixture(config) and self.scheme != "float32":
            return Refusal(
                "its experts are one tensor, which MatMulNBits does not take", "scheme=float32, or export/gguf"
            )
        return None

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.onnx, its weights, tokenizer and parity.json to `out`.

        On an error, `out` stays empty.
        Returns scheme, size_bytes, source_bytes, integer_matrices, top1_agreement (0..1), kl_to_source (nats per position), same_text
        (0..1) and positions.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.sizes import parameter_count, weight_bytes

        torch.set_num_threads(run.compute.threads)
        given, corpus = inputs.one("model").path, inputs.get("calibration")
        source = dense_folder(given, run.scratch)
        check_family(self, family_config(source), str(given))
        model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
        try:
            integers = self.write(model, tokenizer, out)
            write_description(
                out,
                scheme=self.scheme,
                embedding=self.embedding,
                parameters=parameter_count(given),
                versions=versions(),
            )
            found, same = self.compare(
                model, tokenizer, out, None if corpus is None else corpus.path, run.compute.threads
            )
            parity.check_floor(found, self.min_top1, self.max_kl, f"{GRAPH} ({self.scheme})")
            self.check_text(same)
        except BaseException:
            for file in out.iterdir():
                file.unlink()
            raise
        log.info(
            "parity: same top token at %.1f %% of %d positions, KL %.4f nats, same text for %.1f %% of conversations",
            100 * found.top1, len(found.positions), found.divergence, 100 * same,
        )  # fmt: skip
        settings = {
            "scheme": self.scheme, "embedding": self.embedding, "min_top1": self.min_top1, "max_kl": self.max_kl,
            "min_same_text": self.min_same_text, "same_text": same, "tokenizer": "same",
        }  # fmt: skip
        (out / "parity.json").write_text(json.dumps(settings | found.as_dict(), indent=1), encoding="utf-8")
        return {
            "scheme": self.scheme, "size_bytes": sum(file.stat().st_size for file in onnx_weight_files(out)),
            "source_bytes": weight_bytes(given), "integer_matrices": integers, "top1_agreement": found.top1,
            "kl_to_source": found.divergence, "same_text": same, "positions": len(found.positions),
        }  # fmt: skip

    def write(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path) -> int:
        """Write graph, weights, configurations and tokenizer.

        Returns the number of matrices stored as integers.
        """
        import onnx

        from tasks.export.onnx_quantizing import Plan, Quantizer
        from tasks.export.onnx_tracing import trace
        from tasks.shared.model.saving import align_special_tokens, save_tokenizer

        graph, done = trace(model), 0
        if self.quantized:
            plan = Plan(
                BITS[self.scheme], BITS[self.embedding], self.group_size, self.symmetric, self.activations == "int8"
            )
            done = Quantizer(graph, plan).quantize()
        onnx.save_model(graph, out / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=SMALL)
        align_special_tokens(model, tokenizer)
        model.config.save_pretrained(out)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(out)
        save_tokenizer(tokenizer, out)
        return done

    def compare(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        folder: Path,
        corpus: Path | None,
        threads: int,
    ) -> tuple[parity.Parity, float]:
        """Open the folder in a fresh process and compare it with its source.

        Returns the compared distributions, and the share of conversations with the same greedy text.
        Raises ParityError if it does not load, tokenizes differently or does not answer.
        """
        texts, answers = parity.asked_texts(tokenizer, corpus, self.prompts)
        limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or CONTEXT)
        room = min(CONTEXT, limit) - self.tokens
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-room:] for text in texts]
        continuations = parity.greedy_continuations(model, ids, self.tokens, tokenizer.pad_token_id)
        asked = Asked(texts, answers, ids, continuations, self.tokens, self.top)
        session = ask_isolated(folder, threads, asked)
        parity.check_tokenizer(session, tokenizer, [*texts, *answers], folder.name)
        wanted = [str(tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in continuations]
        same = sum(one == other for one, other in zip(wanted, session.texts, strict=True)) / len(wanted)
        return parity.compare_distributions(model, ids, continuations, session, self.top), same

    def check_text(self, same: float) -> None:
        """Raise ParityError if too few conversations are continued with the source's text."""
        if same < self.min_same_text:
            raise ParityError(
                f"{GRAPH} ({self.scheme})",
                f"the source's greedy text in {same:.1%} of conversations",
                f"min_same_text {self.min_same_text:.1%}",
                "a finer scheme (scheme=int8 or float32); if float32 fails too, the exporter does not fit this model",
            )


def versions() -> dict[str, str]:
    """Versions of exporter and runtime, so that what was proved with others has another digest."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
