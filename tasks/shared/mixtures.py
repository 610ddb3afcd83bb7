"""Numbers of experts in a configuration, whatever the family calls them (pure Python)."""

from collections.abc import Mapping, Sequence
from typing import Any

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
"""Configuration names of the number of experts that a router chooses from."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k")
"""Configuration names of the number of experts that it chooses."""


def expert_count(config: Mapping[str, Any]) -> int:
    """Number of experts that a layer's router chooses from; 0 if the configuration names none."""
    return _largest(config, EXPERTS)


def experts_per_token(config: Mapping[str, Any]) -> int:
    """Number of experts that a token takes; 0 if the configuration does not say."""
    return _largest(config, EXPERTS_PER_TOKEN)


def kept_experts_config(config: Mapping[str, Any], count: int) -> dict[str, int]:
    """Return the settings that change if every layer keeps `count` of its experts."""
    return {name: count for name in EXPERTS if config.get(name)}


def _largest(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return the largest whole number under these names; 0 if there is none.

    A value may also be a list with an entry per layer.
    """
    found = [config.get(name) for name in names]
    values = [value for one in found for value in (one if isinstance(one, list | tuple) else [one])]
    return max((value for value in values if isinstance(value, int)), default=0)
