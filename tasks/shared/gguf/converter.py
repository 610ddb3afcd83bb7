"""llama.cpp's converter (part of auto-round), with our tensor types and tokenizers."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.blocks import COPYING, is_copied, pack
from tasks.shared.gguf.places import EMBEDDING, VOCABULARY_TENSORS, Place, place_of
from tasks.shared.gguf.support import attended
from tasks.shared.gguf.types import PlannedTensor, plan_tensor
from tasks.shared.gguf.vocabulary import GPT2_SPLITS, SentencePieces, byte_level_splits, sentence_pieces
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.progress import no_foreign_bars

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FLOAT_TENSORS = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", ".bias")
"""Ends of the names of tensors that stay float32: norms, a mixture's router, learned positions, biases (those of experts have two axes)."""


class Ours:
    """Our tensor types and tokenizers; a mix-in before one of the converter's classes.

    scheme, vocabulary_scheme: types of the layers' matrices, and of embedding and head.
    types: types by place, instead of these; every matrix has one, or none has.
    importance: mean squared input per column of a weight, by its name in the source.
    scales: of matrices in nvfp4, by their names in the source; llama.cpp multiplies by a tensor of this name.
    written: the matrices so far, as they are in the file.
    """

    scheme = vocabulary_scheme = "f16"
    types: Mapping[Place, str] = {}
    importance: Mapping[str, "Tensor"] = {}
    scales: Mapping[str, float] = {}
    written: list[PlannedTensor]
    columns: "Tensor | None" = None
    model_arch: Any
    gguf_writer: Any
    hparams: dict[str, Any]
    dir_model: Path
    rope_parameters: Mapping[str, Any]

    def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
        """Return the type of the tensor that `modify_tensors` has just given."""
        kind = "F32" if n_dims < 2 or new_name.endswith(FLOAT_TENSORS) else self.written[-1].type.upper()
        return type_numbers()[kind]

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
        """Yield the tensors of a weight, and note their types and columns."""
        for new_name, tensor in super().modify_tensors(data_torch, name, bid):  # type: ignore[misc]
            whole = data_torch if new_name == EMBEDDING else tensor  # Gemma 3's class cuts off rows without a token
            if whole.dim() >= 2 and not new_name.endswith(FLOAT_TENSORS):
                wanted = self.vocabulary_scheme if new_name in VOCABULARY_TENSORS else self.scheme
                if self.types:  # by its name in the file, since a mixture's experts come as one tensor
                    wanted = self.types[place_of(new_name)]
                self.written.append(plan_tensor(new_name, whole.shape[-1], whole.numel(), wanted))
            self.columns = self.importance.get(name) if whole.dim() == 2 else None
            scale = self.scales.get(name)
            if scale is None or self.written[-1].type != "nvfp4":
                yield new_name, whole
            else:
                yield new_name, whole / scale
                yield new_name.removesuffix(".weight") + ".scale", whole.new_tensor([scale])

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """Make the converter store tensors by `pack`, with the columns of the current one."""
        import gguf

        before, quants = gguf.quants.quantize, cast(Any, gguf.quants)

        def quantize(data: Any, kind: Any) -> Any:
            columns = None if self.columns is None else self.columns.numpy()
            scheme = kind.name.lower()
            packed = pack(data, scheme, columns)
            if scheme in COPYING:  # a matrix, hence the last one noted
                self.written[-1] = replace(self.written[-1], copied=is_copied(data, packed, scheme))
            return packed

        quants.quantize = quantize
        try:
            yield
        finally:
            quants.quantize = before

    def set_gguf_parameters(self) -> None:
        """Write the settings, under the names that the converter reads."""
        self.hparams = {**self.hparams, **expected_names(self.hparams)}
        super().set_gguf_parameters()  # type: ignore[misc]
        if self.hparams.get("model_type") == "gpt_neox":
            self.gguf_writer.add_rope_freq_base(self.rope_parameters.get("rope_theta", 10000.0))

    def set_vocab(self) -> None:
        """Write the tokenizer."""
        pieces = sentence_pieces(self.dir_model, self.hparams["vocab_size"])
        if pieces is not None:
            write_pieces(self.gguf_writer, pieces, self.dir_model)
        elif byte_level_splits(self.dir_model) is None:
            super().set_vocab()  # type: ignore[misc]
            return
        else:
            self._set_vocab_gpt2()  # type: ignore[attr-defined]
        if "tokenizer.ggml.add_bos_token" not in self.gguf_writer.kv_data[0]:
            self.gguf_writer.add_add_bos_token(False)

    def get_vocab_base_pre(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the name of the pre-tokenizer."""
        try:
            return str(super().get_vocab_base_pre(tokenizer))  # type: ignore[misc]
        except NotImplementedError:
            return byte_level_splits(self.dir_model) or GPT2_SPLITS


def converter(config: dict[str, Any], where: str) -> Any:
    """Return llama.cpp's converter for an architecture, with our tensor types and tokenizers.

    Raises TechniqueError if the converter does not know the architecture.
    """
    base = architecture_class(config, where)
    return type("Converter", (Ours, base), {"model_arch": base.model_arch})


def expected_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that the converter reads.

    The context ends where llama.cpp would no longer compute as transformers does.
    """
    found: dict[str, Any] = {}
    if window := attended(config):
        found["max_position_embeddings"] = window
    match config.get("model_type"):
        case "gpt_neox":
            rotary = config.get("rope_parameters") or {}
            found["rotary_pct"] = config.get("rotary_pct") or rotary.get("partial_rotary_factor", 0.25)
        case "gpt2":
            found["n_ctx"] = config.get("n_ctx") or config["n_positions"]
    return found


def write_pieces(writer: Any, pieces: SentencePieces, folder: Path) -> None:
    """Write a SentencePiece-like vocabulary, with the special tokens of the folder's files."""
    from gguf import SpecialVocab

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces.texts)
    writer.add_token_scores(pieces.scores)
    writer.add_token_types(pieces.types)
    writer.add_add_space_prefix(pieces.space_first)
    SpecialVocab(folder, n_vocab=len(pieces.texts)).add_to_gguf(writer)


def architecture_class(config: Mapping[str, Any], where: str) -> Any:
    """Return the converter's class for the configuration's architecture.

    Raises TechniqueError if it, or the gguf package, does not know the architecture.
    """
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion
    from gguf import MODEL_ARCH

    architecture = (config.get("architectures") or ["none"])[0]
    wanted = "a family that docs/families.md lists"
    try:
        with newer_names():
            found = get_conversion(hparams=config, auto_update=False).get_model_class(architecture)
    except NotImplementedError as error:
        got = f"llama.cpp's converter does not know architecture {architecture}"
        raise TechniqueError(where, got, wanted, "quantize/gptq") from error
    if not isinstance(found.model_arch, MODEL_ARCH):
        raise TechniqueError(where, f"the gguf package does not know architecture {architecture}", wanted)
    return found


@contextlib.contextmanager
def newer_names() -> Iterator[None]:
    """Let the converter's modules name architectures that the installed gguf package lacks.

    One module serves several families, and as a whole fails to import at the first unknown name: with gguf 0.19, no Qwen, Gemma or
    Granite could be converted, since their modules also name later ones.
    """
    import gguf

    known = gguf.MODEL_ARCH

    class Names:
        def __getattr__(self, name: str) -> Any:
            return getattr(known, name, name)

    gguf.MODEL_ARCH = Names()  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.MODEL_ARCH = known  # type: ignore[misc]


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """Suppress the converter's log lines and progress bar, but not its errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with no_foreign_bars():
            yield
    finally:
        logging.disable(before)
