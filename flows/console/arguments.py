"""Order of the arguments for Hydra's command line."""

from collections.abc import Sequence

FLAGS_WITH_VALUE = {
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
}
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with flags and their values first.

    argparse would split overrides around a flag.
    """
    flags: list[str] = []
    overrides: list[str] = []
    value_follows = False
    following = [*arguments[1:], ""][: len(arguments)]
    for item, after in zip(arguments, following, strict=True):
        if item in {"--info", "-i"} and after not in INFO:
            item = "--info=all"  # its value is optional: argparse would take the next override for it
        is_override = ("=" in item or item.startswith(("~", "+"))) and not item.startswith("-") and not value_follows
        (overrides if is_override else flags).append(item)
        value_follows = item in FLAGS_WITH_VALUE or item in {"--info", "-i"}
    return flags + overrides
