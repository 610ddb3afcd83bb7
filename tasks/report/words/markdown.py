"""Markdown from untrusted text: names, notes and reasons may contain any characters."""

import re
from collections.abc import Sequence


class Plain(str):
    """Markdown that is safe without escaping."""

    __slots__ = ()


def escape(text: str) -> str:
    """Escape text so that it shows as written, without markup or HTML, on one line."""
    if isinstance(text, Plain):
        return text
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def code(text: str) -> str:
    """Format a digest, a setting or a command as code; empty for empty text."""
    shown = " ".join(text.split())
    if not shown:
        return Plain("")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    shown = f" {shown} " if "`" in shown else shown
    return Plain(f"{fence}{shown}{fence}".replace("|", "\\|"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table; "None." without rows."""
    if not rows:
        return "None."
    shown = [
        [escape(cell) for cell in columns],
        ["---"] * len(columns),
        *([escape(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def bullets(lines: Sequence[str]) -> str:
    """Format a bullet list; "None." for an empty one."""
    return "\n".join(f"- {escape(line)}" for line in lines) or "None."
