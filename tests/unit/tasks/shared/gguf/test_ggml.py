"""llama.cpp's quantizers in the wheel: every type decodes by another reader, and a wheel without them is refused by name."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf import ggml
from tasks.shared.gguf.types import BLOCK_BYTES, FLOATS, WITH_ZERO, bits

BLOCKS = sorted(BLOCK_BYTES.keys() - FLOATS)


@pytest.mark.parametrize("scheme", BLOCKS)
def test_every_type_decodes_in_the_gguf_package(scheme: str) -> None:
    """With fewer bits the error grows; importance is given to all, since some types need it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weight = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    packed = ggml.quantize_rows(weight, scheme, np.ones(512, np.float32))
    assert packed.shape == (3, int(512 * bits(scheme) / 8))
    decoded = np.array(dequantize(packed, GGMLQuantizationType[scheme.upper()]))
    error = float(((decoded - weight) ** 2).mean())
    limit = {8: 1e-4, 6: 1.5e-3, 5: 6e-3, 4: 2e-2, 3: 6e-2, 2: 0.2, 1: 0.6}[int(bits(scheme))]
    assert 0 < error < (0.7 if scheme in ("q2_0", "tq2_0", "tq1_0") else limit), (
        "these scale by the block's largest weight"
    )


@pytest.mark.parametrize("scheme", BLOCKS)
def test_zeros_stay_zero_in_exactly_the_types_that_have_one(scheme: str) -> None:
    """Half of the weights are zero, as pruning leaves them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    draw = np.random.default_rng(0)
    weight = (draw.standard_normal((8, 512)) * (draw.random((8, 512)) < 0.5)).astype(np.float32)
    packed = ggml.quantize_rows(weight, scheme, np.ones(512, np.float32))
    decoded = np.array(dequantize(packed, GGMLQuantizationType[scheme.upper()]))
    kept = float((decoded[weight == 0] == 0).mean())
    assert kept == 1.0 if scheme in WITH_ZERO else kept < 0.1


@pytest.fixture
def fresh() -> Iterator[None]:
    """The library is looked up again in this test, and again after it."""
    ggml.library.cache_clear()
    yield
    ggml.library.cache_clear()


class Wheel:
    """A library with some functions replaced."""

    def __init__(self, lacks: str = "", **replaced: Any) -> None:
        self.real, self.lacks, self.replaced = ggml.library(), lacks, replaced

    def __getattr__(self, name: str) -> Any:
        if name == self.lacks:
            raise AttributeError(name)
        return self.replaced.get(name) or getattr(self.real, name)


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        ({"lacks": "ggml_quantize_chunk"}, "lacks ggml_quantize_chunk"),
        ({"ggml_type_size": lambda kind: 19}, "other types than expected: .*iq4_nl is"),
        ({"ggml_quantize_chunk": lambda *_: 0}, "its q4_0 differs"),
    ],
    ids=["symbol", "type", "result"],
)
def test_a_wheel_without_the_quantizers_is_refused(
    wheel: dict[str, Any], reason: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Wheel(**wheel)
    ggml.library.cache_clear()
    monkeypatch.setattr(ggml, "_declare", lambda found: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: other)
    with pytest.raises(TechniqueError, match=f"xllamacpp .*: .*{reason}"):
        ggml.quantize_rows(np.zeros((1, 32), np.float32), "q4_0")


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TechniqueError, match="not finite"):
        ggml.quantize_rows(np.full((1, 32), np.nan, np.float32), "iq4_nl")
