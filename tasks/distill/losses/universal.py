"""Universal logit distillation across tokenizers, by TRL's loss.

Source: Boizard et al. 2024, arXiv 2402.12030, with TRL's byte alignment and direct comparison of shared tokens (GOLD).

`trl.experimental` may change in any release: only this module uses it, and pyproject pins TRL to one minor version.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError, TechniqueError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Alignment = Literal["bytes", "positions"]
Offsets = list[list[int]]
"""First byte of each token in the text, and the byte after its last."""


@dataclass(frozen=True)
class Side:
    """One model's part of a row.

    logits: (tokens + 1, vocabulary) float32, of the answer's tokens and of the token before them; each predicts the next.
    ids: (tokens + 1,).  offsets: (tokens + 1, 2), bytes in the answer's text, which is the same on both sides; the first is unused.
    """

    logits: "Tensor"
    ids: "Tensor"
    offsets: "Tensor"


class UniversalLoss:
    """Distance between two models' next-token distributions, mean over aligned tokens."""

    def __init__(
        self, student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", alignment: Alignment, hybrid: bool,
        temperature: float, device: str,
    ) -> None:  # fmt: skip
        """Set up TRL's loss for two tokenizers.

        alignment: "bytes" merges tokens up to the next byte at which both models end one, and multiplies their probabilities;
        "positions" pairs the n-th token of one with the n-th of the other.  hybrid: compare shared tokens directly
        (JSD) and the rest by sorted probabilities; else compare all by sorted probabilities.

        Raises TechniqueError if `hybrid` finds no token in common.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it always warns that it is experimental
            from trl.experimental.gold import GOLDConfig
            from trl.experimental.gold.gold_trainer import ULDLoss
        if hybrid and not set(student.get_vocab()) & set(teacher.get_vocab()):
            raise TechniqueError(
                "hybrid", "the two vocabularies have no token in common", "one at least", "hybrid=false"
            )
        settings = GOLDConfig(
            output_dir="unused", report_to="none", use_cpu=True, bf16=False, use_uld_loss=True,
            use_extended_uld=alignment == "bytes", uld_use_hybrid_loss=hybrid,
            uld_student_temperature=temperature, uld_teacher_temperature=temperature,
            # where tokens are merged, its other strategy compares a distribution with that of the next position
            uld_token_merge_strategy="bayesian",
        )  # fmt: skip
        self._loss: Any = ULDLoss(settings, student_tokenizer=student, teacher_tokenizer=teacher, device=device)

    def __call__(self, student: Side, teacher: Side) -> "Tensor":
        """Return a float32 scalar >= 0; 0 with zero gradient if both sides are equal.

        The end of turn is not compared: it is
        the last token of both sides, and hard labels teach it.
        """
        import torch

        labels = [torch.cat([side.ids.new_tensor([-100]), side.ids[1:]])[None] for side in (student, teacher)]
        return self._loss(
            student.logits[None], teacher.logits[None], *labels, student.ids[None], teacher.ids[None],
            student_byte_offsets=student.offsets[None], teacher_byte_offsets=teacher.offsets[None],
        ).reshape(())  # fmt: skip


def answer_offsets(tokenizer: "PreTrainedTokenizerBase", ids: list[int], answer: str, head: str = "") -> Offsets:
    """Byte offsets of an answer's tokens; tokens after the text (end of turn) are at its end.

    head: text that the chat template puts before the answer (an empty thought, a space); its tokens are left out.

    ids: the token ids that the model trains on.  Raises ModelError for a tokenizer that is not byte-based, or that splits the text
    differently when the end of turn follows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.utils import encode_with_byte_offsets
    name = str(tokenizer.name_or_path)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(name, "a tokenizer without offsets of its tokens", "a fast one", "alignment=positions")
    try:
        ((found, offsets),) = encode_with_byte_offsets(backend, [head + answer])
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            name, f"its tokens cannot be placed by bytes: {error}", "byte-level BPE", "alignment=positions"
        ) from error
    if found != ids[: len(found)]:
        raise ModelError(
            name, "it splits an answer differently if the end of turn follows", "an end of turn that is a token of its own",
            "alignment=positions",
        )  # fmt: skip
    start, end = len(head.encode()), len(answer.encode())
    places = [[max(0, first - start), last - start] for first, last in offsets if last > start]
    return places + [[end, end]] * (len(ids) - len(found))
