"""Parts of all exports to a graph with a key-value cache: settings, gate and record."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.graph_gate import check_text, compare, questions
from tasks.export.source import dense_folder
from tasks.shared.engines.protocol import Engine
from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.model.families import check_family, family_config, is_mixture
from tasks.shared.model.graph_files import GraphFiles
from tasks.shared.model.widths import GROUP_SIZES, choose_group_size
from tasks.shared.technique import Inputs, Metrics, Refusal, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Form = Literal["float32", "int8", "int4"]
BITS: Mapping[str, Literal[4, 8] | None] = {"float32": None, "float16": None, "int8": 8, "int4": 4}
TRACING_S = 25.0
"""Rough time to import the exporter and trace a graph."""
SECONDS_PER_WEIGHT = 1e-7
"""Rough time to quantize, write and compare."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GraphExport(ABC):
    """Settings of an export whose graph is refused if it deviates from its source.

    files: names of its files.  scale_bits: bits of a group's scale.
    """

    scheme: str = "int4"
    """Weights of the layers."""
    embedding: str = "int8"
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

    files: ClassVar[GraphFiles]
    scale_bits: ClassVar[int]

    def __post_init__(self) -> None:
        """Raise TechniqueError for a group that the engine has no kernel for."""
        if self.group_size and (self.group_size < 16 or self.group_size & (self.group_size - 1)):
            raise TechniqueError("group_size", str(self.group_size), "0, or a power of two from 16", "group_size=32")

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """Engine that runs the graph."""

    @abstractmethod
    def write_graph(self, model: "PreTrainedModel", out: Path) -> int:
        """Write graph and weights.

        Returns the number of matrices stored as integers.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of exporter and runtime, so that what was proved with others has another digest."""

    @property
    def quantized(self) -> bool:
        """True if any matrix is stored as integers."""
        return any(BITS[form] is not None for form in (self.scheme, self.embedding))

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

    def _bits(self, form: str, group: int) -> float:
        bits = BITS[form]
        if bits is None:
            return 16.0 if form == "float16" else 32.0
        return bits + (self.scale_bits + (0 if self.symmetric else bits)) / group

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse a group size that does not divide a known width."""
        if widths and self.quantized:
            choose_group_size(widths, self.group_size)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse integer weights of experts, which are one tensor of three axes."""
        if is_mixture(config) and BITS[self.scheme] is not None:
            return Refusal(
                "its experts are one tensor of three axes, which is not stored as integers here",
                "scheme=float32, or export/gguf",
            )
        return None

    def export(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write graph, weights, tokenizer and parity.json to `out`.

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
        place = f"{self.files.graph} ({self.scheme})"
        try:
            integers = self.write(model, tokenizer, out)
            about = {"scheme": self.scheme, "embedding": self.embedding, "parameters": parameter_count(given)}
            self.files.describe(out, **about, versions=self.versions())
            texts = None if corpus is None else corpus.path
            asked = questions(model, tokenizer, texts, self.prompts, self.tokens, self.top)
            compared = compare(model, tokenizer, out, self.engine, run.compute.threads, asked)
            found, same = compared.parity, compared.same_text
            parity.check_floor(found, self.min_top1, self.max_kl, place)
            check_text(same, self.min_same_text, place)
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
            "scheme": self.scheme, "size_bytes": sum(file.stat().st_size for file in self.files.list_in(out)),
            "source_bytes": weight_bytes(given), "integer_matrices": integers, "top1_agreement": found.top1,
            "kl_to_source": found.divergence, "same_text": same, "positions": len(found.positions),
        }  # fmt: skip

    def write(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path) -> int:
        """Write graph, weights, configurations and tokenizer.

        Returns the number of matrices stored as integers.
        """
        from tasks.shared.model.saving import align_special_tokens, save_tokenizer

        done = self.write_graph(model, out)
        align_special_tokens(model, tokenizer)
        model.config.save_pretrained(out)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(out)
        save_tokenizer(tokenizer, out)
        return done
