"""FP8 through llm-compressor: weights and activations as 8-bit floats (E4M3).

Source: Micikevicius et al. 2022, arXiv 2209.05433.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.quantize.llm_compressor import EightBit, Recipe, packing_spec, quantize, quiet_import
from tasks.shared.errors import ConfigError, StillroomError, TechniqueError
from tasks.shared.model.configuration import load_config
from tasks.shared.model.weight_files import loaded_files
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Refusal, Spec, StepRun, Upstream

KV_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
"""One scale for the keys of a layer, one for its values."""
UNRECOGNIZED = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom", "falcon", "mpt"})
"""Families whose one projection for queries, keys and values has a name of its own (query_key_value, Wqkv)."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FP8(EightBit):
    """Store 8-bit floats with a scale per output; activations get dynamic or fixed scales."""

    activations: Literal["dynamic", "static"] = "dynamic"
    """Scales of the activations: "dynamic" one per token as it is computed, "static" one per layer from calibration, for faster kernels."""
    kv_cache: Literal["none", "fp8"] = "none"
    """Scales of keys and values.  fp8: two per layer from calibration, so that vLLM keeps its cache in 8-bit floats (--kv-cache-dtype fp8):
    half the memory of a conversation.  none: the cache stays in 16 bits, or vLLM guesses a scale of 1."""
    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split for static scales and those of the cache; dynamic ones need none."""

    spec: ClassVar[Spec] = packing_spec(
        summary="8-bit floating point weights and activations (FP8), for GPUs with FP8 units, by llm-compressor",
        calibration=Port((Kind.CORPUS,), optional=True),
        paper="Micikevicius et al. 2022, arXiv 2209.05433",
    )

    def scheme(self, widths: Mapping[str, int]) -> tuple[dict[str, Any], Metrics]:
        """Return E4M3 floats: weights by output channel, activations by token or layer."""
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        static = self.activations == "static"
        inputs = {"strategy": "tensor", "dynamic": False} if static else {"strategy": "token", "dynamic": True}
        return {"weights": weights, "input_activations": weights | inputs}, {"bits": 8}

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse what `Packed` refuses, and a cache whose attention the library does not know."""
        if self.kv_cache == "fp8" and config.get("model_type") in UNRECOGNIZED:
            return Refusal(
                "compressed-tensors does not recognize its attention: the cache would get no scales", "kv_cache=none"
            )
        return super().refuses(config)

    @property
    def calibrated(self) -> str:
        """Settings whose scales come from calibration; empty if there are none."""
        static = ["activations=static"] * (self.activations == "static") + ["kv_cache=fp8"] * (self.kv_cache == "fp8")
        return " and ".join(static)

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[StillroomError]:
        """Yield an error for scales from calibration without a corpus."""
        if self.calibrated and not inputs.get("calibration"):
            yield self._needs_corpus(f"{where}.inputs.calibration")

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write a compressed-tensors folder (float-quantized) to `out`.

        Raises ConfigError for scales from calibration without a corpus, TechniqueError if a layer's cache got none.
        """
        if self.calibrated and inputs.get("calibration") is None:
            raise self._needs_corpus("inputs.calibration")
        quiet_import()
        from llmcompressor.modifiers.quantization import QuantizationModifier

        cache: dict[str, Any] = {"kv_cache_scheme": KV_SCHEME} if self.kv_cache == "fp8" else {}

        def build(model: Any, arguments: Mapping[str, Any], _ids: object) -> Recipe:
            return Recipe([QuantizationModifier(**arguments, **cache)])

        rows = self.calibration_rows if self.calibrated else 0
        figures = quantize(self, inputs, out, run, build, rows, compare=False)
        if cache:
            check_cache_scales(out)
        return figures

    def _needs_corpus(self, where: str) -> ConfigError:
        return ConfigError(
            where,
            f"no corpus, and {self.calibrated}",
            "a corpus to calibrate on",
            "activations=dynamic and kv_cache=none",
        )


def check_cache_scales(out: Path) -> None:
    """Raise TechniqueError unless every layer has positive scales of its keys and values."""
    from safetensors import safe_open

    layers = int(load_config(out).get_text_config().num_hidden_layers)
    scales: dict[str, float] = {}
    for file in loaded_files(out):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith((".k_scale", ".v_scale"))]  # noqa: SIM118 - not a mapping
            scales |= {name: float(tensors.get_tensor(name)) for name in names}
    sound = [name for name, scale in scales.items() if 0 < scale < math.inf]
    if len(sound) != 2 * layers:
        got = f"{len(sound)} of {2 * layers} scales of keys and values are positive numbers"
        raise TechniqueError("kv_cache", got, "one of each per layer", "kv_cache=none")
