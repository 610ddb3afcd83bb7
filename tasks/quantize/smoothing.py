"""Smoothing: channels of a part are scaled down, and the layers that read them scaled up.

The model computes the same before and after; what changes is how well its weights and activations round.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError
from tasks.shared.model.families import is_mixture, title
from tasks.shared.model.layout import decoder_layers, part_of
from tasks.shared.technique import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Names within a decoder layer: the part scaled down, and all layers that read it."""

    smoothed: str
    readers: tuple[str, ...]

    def patterns(self) -> tuple[str, list[str]]:
        """Return both as patterns of llm-compressor."""
        return f"re:.*{self.smoothed}$", [f"re:.*{name}$" for name in self.readers]


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj")
USUAL = (Pair("input_layernorm", ATTENTION), Pair("post_attention_layernorm", GATED))
FUSED = (
    Pair("input_layernorm", ("self_attn.qkv_proj",)),
    Pair("post_attention_layernorm", ("mlp.gate_up_proj",)),
)
GEMMA = (Pair("input_layernorm", ATTENTION), Pair("pre_feedforward_layernorm", GATED))
NORMS: Mapping[str, tuple[Pair, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"), USUAL),
    "phi3": FUSED, "gemma2": GEMMA, "gemma3_text": GEMMA,
}  # fmt: skip
"""Norms and the projections that read them, by `model_type`.  A norm that something else reads as well must not be scaled."""
INNER = (Pair("self_attn.v_proj", ("self_attn.o_proj",)), Pair("mlp.up_proj", ("mlp.down_proj",)))
"""Projections whose output channels enter the next one without mixing.  Values reach o_proj so only with a key-value head per head."""


def unknown_norms(config: Mapping[str, Any]) -> Refusal | None:
    """Return why a family cannot be smoothed, or None."""
    if config.get("model_type") in NORMS and not is_mixture(config):
        return None
    return Refusal("it has no known norm that feeds only projections and could absorb the scales", "quantize/gptq")


def smoothing_pairs(model: "PreTrainedModel", inner: bool) -> list[Pair]:
    """Return the pairs of a model's layers.

    inner: also pairs of two projections.
    Raises TechniqueError if the family is unknown or its layers lack a part.
    """
    kind = str(model.config.model_type)
    layer = decoder_layers(model)[0]
    chained = [pair for pair in INNER if inner and _matches(layer, pair)]
    pairs = [*NORMS.get(kind, ()), *chained]
    missing = [name for pair in pairs for name in (pair.smoothed, *pair.readers) if part_of(layer, name) is None]
    if missing or not pairs:
        got = f"{title(model.config.to_dict())}: {', '.join(missing) or 'its norms are unknown'}"
        raise TechniqueError(
            "smoothing", got, "a family that docs/families.md lists for this technique", "quantize/gptq"
        )
    return pairs


def _matches(layer: Any, pair: Pair) -> bool:
    """Return True if both projections exist and their channels are the same ones."""
    first, second = part_of(layer, pair.smoothed), part_of(layer, pair.readers[0])
    return first is not None and second is not None and first.out_features == second.in_features


@contextmanager
def smoothing_asserted(model: "PreTrainedModel", pairs: Sequence[Pair], always: bool) -> Iterator[None]:
    """Raise TechniqueError unless the block scales parts of the pairs, by finite factors.

    always: the method scales always; False if no scaling may be best, as AWQ finds for 8 bits: then a warning says so.
    A warning also names kinds of parts that are left as they are in every layer: llm-compressor skips, with a log line at most, a
    part that no token reached or whose outputs are not finite.
    """
    layers = decoder_layers(model)

    def weights(pair: Pair) -> list[Any]:
        return [part_of(layer, pair.smoothed).weight.detach().clone() for layer in layers]

    before = {pair: weights(pair) for pair in pairs}
    yield
    left: list[str] = []
    for pair, olds in before.items():
        news = weights(pair)
        if not all(bool(new.isfinite().all()) for new in news):
            raise TechniqueError(pair.smoothed, "its scales are not finite", "finite inputs", "more calibration rows")
        if all(bool((old == new).all()) for old, new in zip(olds, news, strict=True)):
            left.append(pair.smoothed)
    if always and len(left) == len(before):
        got = "llm-compressor scaled none of them"
        raise TechniqueError(", ".join(left), got, "channels scaled by the calibration", "quantize/gptq")
    if left:
        log.warning("%s: not scaled in any layer", ", ".join(left))
