"""Export to llama.cpp's GGUF, behind a parity gate: the file must tokenize and answer like its source."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.importance import input_energy
from tasks.shared.gguf.writer import EmbeddingScheme, Scheme, write_gguf
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.technique import Inputs, Kind, Metrics, Port, StepRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CONTEXT = 2048


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Gguf:
    """One .gguf file with tokenizer and chat template, refused if it strays from its source.

    A source of 4-bit groups of 32 (GPTQ) goes into q4_0 with its integers as they are: its calibration is kept, where
    rounding the dense source to q4_0 has none.
    """

    scheme: Scheme = "q4_0"
    """Type of the layers' matrices.  q4_0: 4.5 bits a weight, q4_1: 5, q5_0: 5.5, q5_1: 6, q8_0: 8.5; blocks of 32 weights."""
    embedding: EmbeddingScheme = "q8_0"
    """Type of the token embedding and the head; in a small model they are half of the file and feel coarse steps most."""
    importance_rows: Annotated[int, Field(ge=0)] = 32
    """Calibration conversations that tell q4_0 which columns matter when it fits its scales; 0, or no corpus: plain rounding."""
    prompts: Annotated[int, Field(ge=1, le=256)] = 16
    """Conversations to compare on."""
    tokens: Annotated[int, Field(ge=1, le=128)] = 8
    """Continuation tokens per conversation; each is one compared position."""
    top: Annotated[int, Field(ge=2, le=1000)] = 64
    """Likeliest tokens that the divergence counts one by one; the rest is one outcome."""
    min_top1: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Least share of positions at which file and source agree on the likeliest token.

    Measured on the raw 135M model: f16 100 %, q4_1 96 % (its weights come from q4_1), q4_0 73 %.
    """
    max_kl: Annotated[float, Field(gt=0)] = 0.5
    """Largest mean divergence from the source, nats per position."""

    ports: ClassVar[Mapping[str, Port]] = {
        "model": Port((Kind.MODEL,)),
        "calibration": Port((Kind.CORPUS,), optional=True),
    }
    produces: ClassVar[Kind] = Kind.ENGINE
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "auto-round", "gguf", "xllamacpp")

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write model.gguf and parity.json to `out`; on ParityError `out` is left empty."""
        import torch

        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.sizes import weight_bytes

        torch.set_num_threads(run.compute.threads)
        given, corpus = inputs.one("model").path, inputs.get("calibration")
        source = dense_folder(given, run.scratch)
        model, tokenizer = load_model(source), load_tokenizer(source)
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
            "parity: same likeliest token at %.1f %% of %d positions, KL %.4f nats",
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
        """Serve the file and hold it against its source.  Raises ParityError if it tokenizes differently or does not answer."""
        from tasks.shared.engines.llama_server import serve
        from tasks.shared.model.loading import render

        conversations = [[{"role": "user", "content": text}] for text in parity.CONVERSATIONS[: self.prompts]]
        answers: list[str] = []
        if corpus is not None:
            rows = calibration_rows(corpus, self.prompts)
            conversations, answers = [row.prompt for row in rows], [row.answer for row in rows]
        texts = [render(tokenizer, conversation) for conversation in conversations]
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"][-(CONTEXT - self.tokens) :] for text in texts]
        with serve(file, threads=threads, parallel=1, context=CONTEXT) as url:
            parity.check_tokenizer(url, tokenizer, [*texts, *answers], str(file))
            return parity.measure_parity(model, tokenizer, prompts, url, self.tokens, self.top)


def dense_folder(source: Path, scratch: Path) -> Path:
    """The source if it is a dense folder; a GGUF file or a quantized folder is made one."""
    from tasks.shared.model.saving import dense_copy
    from tasks.shared.model.weights import check_source, is_gguf, is_quantized

    check_source(source)
    if not is_gguf(source) and not is_quantized(source):
        return source
    dense_copy(source, scratch / "dense")
    return scratch / "dense"
