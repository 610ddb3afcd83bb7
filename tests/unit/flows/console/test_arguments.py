"""Flags and overrides in any order."""

import pytest

from flows.console.arguments import flags_first


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ([], []),
        (["+recipe=x", "--multirun", "a=1,2"], ["--multirun", "+recipe=x", "a=1,2"]),
        (["--config-dir", "a=b", "+recipe=x"], ["--config-dir", "a=b", "+recipe=x"]),
        (["+recipe=x", "--info", "seed=1"], ["--info=all", "+recipe=x", "seed=1"]),
        (["+recipe=x", "--info", "plugins"], ["--info", "plugins", "+recipe=x"]),
        (["~steps.verdict", "-m"], ["-m", "~steps.verdict"]),
    ],
)
def test_flags_come_first_and_keep_their_values(typed: list[str], wanted: list[str]) -> None:
    assert flags_first(typed) == wanted
