"""Widths of a model's matrices, and the divisors that formats ask of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.forecast import Dimensions
from tasks.shared.model.families import family_config
from tasks.shared.model.gguf_files import header_settings, read_gguf_header

GROUP_SIZES = (128, 64, 32)
"""Sizes of groups that share a scale, largest first: what engines have kernels for."""
DIVISORS: Mapping[str, int] = {
    "f32": 1, "f16": 1, "bf16": 1, "q8_0": 32, "q5_1": 32, "q5_0": 32, "q4_1": 32, "q4_0": 32, "iq4_nl": 32, "mxfp4": 32,
    "nvfp4": 64, "q2_0": 64,
    "q2_k": 256, "q3_k": 256, "q4_k": 256, "q5_k": 256, "q6_k": 256, "iq1_s": 256, "iq1_m": 256, "iq2_xxs": 256, "iq2_xs": 256,
    "iq2_s": 256, "iq3_xxs": 256, "iq3_s": 256, "iq4_xs": 256, "tq1_0": 256, "tq2_0": 256,
}  # fmt: skip
"""Weights of a row that a format stores together, by GGUF type."""
SHOWN = 12


def model_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Input sizes of a model's matrices, by name; unknown ones are left out.

    config: a transformers configuration as a dictionary.
    """
    text = {**config, **(config.get("text_config") or {})}
    if not (text.get("hidden_size") or text.get("n_embd")):
        return {}
    shape = Dimensions.from_config(text)
    found = {"hidden_size": shape.width, "heads x head_dim": shape.query, "intermediate_size": shape.feed_forward}
    if text.get("moe_intermediate_size"):
        found["moe_intermediate_size"] = int(text["moe_intermediate_size"])
    return found


def shaped_config(path: Path) -> dict[str, Any]:
    """Return a source model's `family_config`; a GGUF file's has the sizes of its header."""
    config = family_config(path)
    if not path.is_file():
        return config
    try:
        header = read_gguf_header(path)
    except (OSError, ModelError):
        return config
    return config | header_settings(header)


def shortened(names: list[str]) -> str:
    """Join names; only the first dozen of many."""
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more of the same kinds" if len(names) > SHOWN else ""
    )


def ragged(widths: Mapping[str, int], divisor: int) -> list[str]:
    """Return the widths that a divisor does not divide, as `name (in=width)`."""
    return [f"{name} (in={width})" for name, width in widths.items() if width % divisor]


def choose_group_size(widths: Mapping[str, int], wanted: int = 0) -> int:
    """Return the number of weights that share one scale.

    widths: input sizes by layer, or by setting as `model_widths` returns them.
    wanted: as set; 0 takes the largest of 128, 64 and 32 that divides every width.
    Raises TechniqueError that lists every width that is not a multiple.
    """
    if not widths:
        raise TechniqueError(
            "model", "no linear layer besides the head", "a transformer whose layers are torch.nn.Linear"
        )
    fitting = [group for group in GROUP_SIZES if not ragged(widths, group)]
    if wanted == 0 and fitting:
        return fitting[0]
    group = wanted or GROUP_SIZES[-1]
    bad = ragged(widths, group)
    if not bad:
        return group
    sizes = ", ".join(str(size) for size in sorted({size for size in widths.values() if size % group}))
    other = f"group_size={fitting[0]} (or 0, which chooses it)" if fitting else f"a group_size that divides {sizes}"
    raise TechniqueError(
        "group_size",
        f"{group} does not divide {len(bad)} input sizes: {shortened(bad)}",
        f"a divisor of every input size ({sizes})",
        f"{other}, or leave the model dense and export it to GGUF q8_0",
    )


def check_groups(widths: Mapping[str, int], group: int, name: str) -> None:
    """Refuse input sizes that a format's groups do not divide.

    widths: input sizes by layer, or by setting as `model_widths` returns them.
    group: weights that share a scale.  name: the format's name.
    Raises TechniqueError that lists every width that is not a multiple.
    """
    if bad := ragged(widths, group):
        raise TechniqueError(
            "format",
            f"the groups of {name} have {group} weights, which do not divide {len(bad)} input sizes: {shortened(bad)}",
            f"multiples of {group}",
            "another format, or leave the model dense and export it to GGUF q8_0",
        )
