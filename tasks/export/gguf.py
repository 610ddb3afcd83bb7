"""Export to llama.cpp's GGUF with a parity gate against the source model."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.importance import input_energy
from tasks.shared.forecast import Forecast, Workload, forecast_reading
from tasks.shared.gguf.support import attended, unsupported
from tasks.shared.gguf.writer import EmbeddingScheme, Scheme, write_gguf
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.families import check_family, family_config
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CONTEXT = 2048
BITS = {"q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5, "f16": 16.0, "bf16": 16.0, "f32": 32.0}
"""Bits per weight by GGUF type, scales included."""
SECONDS_PER_WEIGHT = 1e-7
"""Time to convert and compare, by measurement on two CPU cores."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gguf:
    """One .gguf file with tokenizer and chat template, refused if it deviates from its source.

    A source of 4-bit groups of 32 (GPTQ) is copied to q4_0 with unchanged integers and so keeps its calibration, in contrast to a dense
    source that is rounded to q4_0.
    """

    scheme: Scheme = "q4_0"
    """Type of the layers' matrices.  q4_0: 4.5 bits per weight, q4_1: 5, q5_0: 5.5, q5_1: 6, q8_0: 8.5; blocks of 32 weights."""
    embedding: EmbeddingScheme = "q8_0"
    """Type of the token embedding and the head, which in a small model are half of the file and most sensitive to rounding."""
    importance_rows: Annotated[int, Field(ge=0)] = 32
    """Calibration conversations for the column importance that q4_0 scales are fitted to; 0, or no corpus: plain rounding."""
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
        summary="A llama.cpp file that must tokenize and answer like its source; copies 4-bit GPTQ integers unchanged",
        ports={"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)},
        produces=Kind.ENGINE,
        libraries=("torch", "transformers", "tokenizers", "auto-round", "gguf", "xllamacpp"),
        gives="packed",
    )

    def forecast(self, work: Workload) -> Forecast:
        """Seconds by the number of weights; bytes by the types of layers and embedding."""
        size = work.size()
        embedding = self.scheme if self.embedding == "same" else self.embedding
        layers = BITS[self.scheme] / 8 * (size.parameters - size.outer)
        file = replace(size, bytes=layers + BITS[embedding] / 8 * size.outer)
        return forecast_reading(work, SECONDS_PER_WEIGHT * size.parameters, size.parameters, file)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models that llama.cpp computes otherwise than transformers."""
        return unsupported(config)

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.gguf and parity.json to `out`; on ParityError, `out` stays empty.

        Returns scheme, size_bytes, source_bytes, top1_agreement (0..1), kl_to_source (nats per position) and positions.
        """
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        given, corpus = inputs.one("model").path, inputs.get("calibration")
        source = dense_folder(given, run.scratch)
        check_family(self, family_config(source), str(given))
        model, tokenizer = load_model(source), load_tokenizer(source, chat=False)
        importance = None
        if corpus is not None and source == given and self.importance_rows and "q4_0" in (self.scheme, self.embedding):
            rows = calibration_rows(corpus.path, self.importance_rows)
            importance = input_energy(model, calibration_ids(tokenizer, rows, CONTEXT))
        file = out / "model.gguf"
        try:
            write_gguf(source, file, self.scheme, self.embedding, inputs.one("model").name, importance)
            found = self.compare(model, tokenizer, file, None if corpus is None else corpus.path, run.compute.threads)
            parity.check_floor(found, self.min_top1, self.max_kl, f"{file.name} ({self.scheme})")
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
            "scheme": self.scheme,
            "embedding": self.embedding,
            "min_top1": self.min_top1,
            "max_kl": self.max_kl,
            "tokenizer": "same",
        }
        (out / "parity.json").write_text(json.dumps(settings | found.as_dict(), indent=1), encoding="utf-8")
        return {
            "scheme": self.scheme,
            "size_bytes": file.stat().st_size,
            "source_bytes": weight_bytes(given),
            "top1_agreement": found.top1,
            "kl_to_source": found.divergence,
            "positions": len(found.positions),
        }

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
        from tasks.shared.model.prompts import render

        asked = [[{"role": "user", "content": text}] for text in parity.CONVERSATIONS[: self.prompts]]
        texts, answers = [render(tokenizer, conversation) for conversation in asked], list[str]()
        if corpus is not None:
            rows = calibration_rows(corpus, self.prompts)
            texts = [render(tokenizer, row.prompt, tools=row.tools) for row in rows]
            answers = [row.answer for row in rows]
        context = min(CONTEXT, attended(model.config.to_dict()) or CONTEXT)
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"][-(context - self.tokens) :] for text in texts]
        with LLAMA_CPP.open(file, Opening(threads, context=CONTEXT)) as session:
            parity.check_tokenizer(session, tokenizer, [*texts, *answers], str(file))
            return parity.measure_parity(model, tokenizer, prompts, session, self.tokens, self.top)


def dense_folder(source: Path, scratch: Path) -> Path:
    """Return the source if it is a dense folder; else a dense copy of it."""
    from tasks.shared.model.saving import dense_copy
    from tasks.shared.model.weights import check_source, is_gguf, is_quantized

    check_source(source)
    if not is_gguf(source) and not is_quantized(source):
        return source
    dense_copy(source, scratch / "dense")
    return scratch / "dense"
