"""Parts of all exports to GGUF: the file, its gate against the source, and its record."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.export import parity
from tasks.export.importance import input_energy
from tasks.export.source import matrix_scales
from tasks.shared.errors import ModelError, ParityError
from tasks.shared.gguf.places import VOCABULARY_TENSORS, Place
from tasks.shared.gguf.support import attended, unsupported
from tasks.shared.gguf.types import FLOATS, WITH_ZERO, EmbeddingScheme, PlannedTensor, Scheme
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.calibration import calibration_ids, calibration_rows
from tasks.shared.model.masks import read_masks
from tasks.shared.technique import Inputs, Metrics, Refusal

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
CONTEXT = 2048
FILE = "model.gguf"
SECONDS_PER_WEIGHT = 1e-7
"""Time to convert and compare, by measurement on two CPU cores."""
TOKEN_BYTES = 36
"""Bytes of a token in the file's header: its text, type and merges (SmolLM2's)."""
MAX_MISS = 0.01
"""Largest difference of a file's size from the plan's, as a share."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A loaded model to export.

    given: the model as the step got it.  folder: the same with dense weights.  name: of the artifact.
    corpus: folder with a calibration split; None without one.
    """

    given: Path
    folder: Path
    name: str
    corpus: Path | None
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load_source(inputs: Inputs, folder: Path, device: str = "cpu") -> Source:
    """Load the model at the port `model` from the folder of its dense weights."""
    from tasks.shared.model.loading import load_model, load_tokenizer

    model, corpus = inputs.one("model"), inputs.get("calibration")
    loaded, tokenizer = load_model(folder, device=device), load_tokenizer(folder, chat=False)
    return Source(model.path, folder, model.name, None if corpus is None else corpus.path, loaded, tokenizer)


@dataclasses.dataclass(frozen=True)
class FileTypes:
    """Types of a file, as `write_gguf` takes them, and the matrices planned with them."""

    scheme: Scheme
    embedding: EmbeddingScheme
    planned: Sequence[PlannedTensor]
    fallback: bool = False
    by_place: Mapping[Place, str] | None = None

    @property
    def bytes(self) -> int:
        """Planned size of all matrices."""
        return sum(tensor.bytes for tensor in self.planned)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GatedGguf:
    """Settings of an export to GGUF whose file is refused if it deviates from its source."""

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
    split_bytes: Annotated[int, Field(ge=0)] = 45_000_000_000
    """Most bytes of weights in a file: larger models are written in parts, model-00001-of-00002.gguf and so on, of which llama.cpp opens the first.
    Hubs take files of up to 50 GB.  0 never splits."""

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models that llama.cpp computes otherwise than transformers."""
        return unsupported(config)

    def importance(self, source: Source) -> dict[str, "Tensor"]:
        """Return the column importance by weight name; empty without conversations to measure it on."""
        if source.corpus is None or not self.importance_rows:
            return {}
        rows = calibration_rows(source.corpus, self.importance_rows)
        return input_energy(source.model, calibration_ids(source.tokenizer, rows, CONTEXT))

    def write(
        self, source: Source, out: Path, types: FileTypes, importance: Mapping[str, "Tensor"], threads: int
    ) -> Metrics:
        """Write model.gguf, or its parts, and parity.json to `out`; on ParityError, nothing.

        importance: (in,) per weight name, mean squared input of each column; empty for plain rounding.
        Returns scheme, size_bytes, tensor_bytes (of the matrices, as planned), copied_matrices (written with the levels of the source),
        source_bytes, top1_agreement (0..1), kl_to_source (nats per position) and positions.
        """
        from tasks.shared.model.sizes import weight_bytes

        warn_of_masks(source.given, types.planned)
        try:
            written = write_gguf(
                source.folder, out / FILE, types.scheme, types.embedding, source.name, importance, types.fallback, types.by_place,
                self.split_bytes, matrix_scales(source.given),
            )  # fmt: skip
            file = min(out.glob("*.gguf"))  # the first part
            check_size(file, written, types.bytes)
            found = self.compare(source, file, threads)
            parity.check_floor(found, self.min_top1, self.max_kl, f"{file.name} ({types.scheme})")
        except BaseException:
            for part in out.glob("*.gguf"):
                part.unlink()
            raise
        log_copies(written, packed=source.folder != source.given)
        log.info(
            "parity: same top token at %.1f %% of %d positions, KL %.4f nats",
            100 * found.top1,
            len(found.positions),
            found.divergence,
        )
        settings = {
            "scheme": types.scheme,
            "embedding": types.embedding,
            "min_top1": self.min_top1,
            "max_kl": self.max_kl,
            "tokenizer": "same",
            "types": dict(Counter(tensor.type for tensor in written)),
        }
        (out / "parity.json").write_text(json.dumps(settings | found.as_dict(), indent=1), encoding="utf-8")
        return {
            "scheme": types.scheme,
            "size_bytes": weight_bytes(file),
            "tensor_bytes": types.bytes,
            "copied_matrices": sum(tensor.copied for tensor in written),
            "source_bytes": weight_bytes(source.given),
            "top1_agreement": found.top1,
            "kl_to_source": found.divergence,
            "positions": len(found.positions),
        }

    def compare(self, source: Source, file: Path, threads: int) -> parity.Parity:
        """Serve the file and compare it with its source.

        Raises ParityError if it does not load, tokenizes differently or does not answer.
        """
        model, tokenizer = source.model, source.tokenizer
        texts, answers = parity.asked_texts(tokenizer, source.corpus, self.prompts)
        config = model.config.to_dict()
        context = min(CONTEXT, attended(config) or CONTEXT, config.get("max_position_embeddings") or CONTEXT)
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"][-(context - self.tokens) :] for text in texts]
        with served(file, threads) as session:
            parity.check_tokenizer(session, tokenizer, [*texts, *answers], str(file))
            return parity.measure_parity(model, tokenizer, prompts, session, self.tokens, self.top)


@contextmanager
def served(file: Path, threads: int) -> Iterator[Any]:
    """Yield a session of llama.cpp with a file just written.

    Raises ParityError if llama.cpp does not load it.
    """
    from tasks.shared.engines.llama_engine import LLAMA_CPP
    from tasks.shared.engines.protocol import Opening

    with ExitStack() as opened:
        try:
            session = opened.enter_context(LLAMA_CPP.open(file, Opening(threads, context=CONTEXT)))
        except ModelError as error:
            raise ParityError(
                file.name, error.got, "a file that llama.cpp loads",
                "quantize/gptq, or keep the model dense: llama.cpp expects other tensors of this family or of these sizes",
            ) from error  # fmt: skip
        yield session


def log_copies(written: Sequence[PlannedTensor], packed: bool) -> None:
    """Log how many matrices of the layers went over unchanged; warn if a packed one did not.

    packed: the source has levels and scales, which rounding moves.
    """
    layers = [tensor for tensor in written if tensor.name not in VOCABULARY_TENSORS]
    rounded = [tensor for tensor in layers if not tensor.copied]
    if packed and rounded and {tensor.type for tensor in rounded} - FLOATS:
        log.warning(
            "%d of %d matrices of the layers were copied with unchanged levels; %d were rounded again, to %s",
            len(layers) - len(rounded), len(layers), len(rounded), ", ".join(sorted({tensor.type for tensor in rounded})),
        )  # fmt: skip
    elif len(rounded) < len(layers):
        log.info("%d of %d matrices of the layers were copied with unchanged levels", len(layers) - len(rounded), len(layers))  # fmt: skip


def check_size(file: Path, written: Sequence[PlannedTensor], planned: int) -> None:
    """Raise ParityError if the file's matrices take other bytes than planned before the work."""
    made = sum(tensor.bytes for tensor in written)
    if abs(made - planned) > MAX_MISS * planned:
        got = f"its matrices take {made:,} bytes; {planned:,} were planned"
        raise ParityError(
            file.name, got, "the planned size", "report this: the plan does not know a matrix of this family"
        )


def warn_of_masks(source: Path, tensors: Sequence[PlannedTensor]) -> None:
    """Warn if weights that pruning masked do not stay zero."""
    masks = read_masks(source)
    lost = sorted({tensor.type for tensor in tensors if masks and tensor.name in masks.tensors} - WITH_ZERO)
    if lost:
        log.warning(
            "%s has masked weights, and %s has no exact zero: they become small numbers; q4_0, q5_0 or q8_0 keeps them zero",
            source.name, ", ".join(lost),
        )  # fmt: skip
