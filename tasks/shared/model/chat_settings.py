"""Settings of a model source's chat template, applied in a folder that links to its files."""

import hashlib
import json
import os
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.shared.errors import ConfigError, ModelError
from tasks.shared.files import write_text
from tasks.shared.model.template_edits import DATE, folding, has_clock, mentions, pinned, with_variable
from tasks.shared.model.weights import is_gguf
from tasks.shared.paths import user_path

TEMPLATE_FILE = "chat_template.jinja"
THINKING = ("enable_thinking", "thinking")
"""Variables by which templates are told to think before answering."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ChatSettings:
    """Changes of a chat template, which everything that is made from the model carries."""

    template: str = ""
    """A Jinja file to use instead of the model's own chat template, or for a base model, which has none."""
    thinking: bool | None = None
    """Turn the template's thinking on or off (`enable_thinking`); null leaves it at the template's default."""
    system: Literal["", "fold"] = ""
    """fold: put a system turn into the next user turn, for templates that refuse or drop system turns."""
    date: str = ""
    """Date that a template with a clock writes, as YYYY-MM-DD; empty: 2024-07-26."""


def with_chat(where: str, model: Path, settings: ChatSettings) -> Path:
    """Return a folder with the model's files and the changed template.

    It is the model itself if nothing is set.

    Raises ConfigError for a setting that the template does not know or a GGUF file, ModelError for a missing template.
    """
    if not (settings.template or settings.thinking is not None or settings.system or settings.date):
        return model
    if is_gguf(model):
        raise ConfigError(
            where, "chat settings for a GGUF file, whose template is inside it", "a Hugging Face folder",
            "leave out template, thinking, system and date",
        )  # fmt: skip
    return _linked(model, changed(where, _given(where, model, settings), settings))


def changed(where: str, template: str, settings: ChatSettings) -> str:
    """Return a template's text with the settings written into it."""
    if settings.date:
        try:
            day = date.fromisoformat(settings.date)
        except ValueError as error:
            raise ConfigError(f"{where}.date", settings.date, "YYYY-MM-DD", f"{where}.date={DATE}") from error
        if not has_clock(template):
            raise ConfigError(f"{where}.date", settings.date, "a template with a date", f"leave out {where}.date")
        template = pinned(template, day)
    if settings.system:
        template = folding(template)
    if settings.thinking is not None:
        known = [name for name in THINKING if mentions(template, name)]
        if not known:
            got = f"{settings.thinking}, but the chat template knows neither {' nor '.join(THINKING)}"
            raise ConfigError(f"{where}.thinking", got, "a template that can think", f"leave out {where}.thinking")
        template = with_variable(template, known[0], settings.thinking)
    return template


def _given(where: str, model: Path, settings: ChatSettings) -> str:
    """Text of the template to change."""
    if settings.template:
        file = user_path(settings.template)
        if not file.is_file():
            raise ConfigError(f"{where}.template", f"{file}: no such file", "a Jinja chat template")
        return file.read_text("utf-8")
    text = own_template(model)
    if not text:
        raise ModelError(
            str(model), "no chat template", "one to change", f"{where}.template=/path/to/chat_template.jinja"
        )
    return text


def own_template(model: Path) -> str:
    """Text of a folder's chat template; empty if it has none."""
    file, config = model / TEMPLATE_FILE, model / "tokenizer_config.json"
    if file.is_file():
        return file.read_text("utf-8")
    if not config.is_file():
        return ""
    found = json.loads(config.read_text("utf-8")).get("chat_template") or ""
    named = {each["name"]: each["template"] for each in found} if isinstance(found, list) else {}
    return str(named.get("default", "")) if isinstance(found, list) else str(found)


def _linked(model: Path, template: str) -> Path:
    """Make a folder in the user's cache with links to the model's files, and the template."""
    files = sorted(file for file in model.iterdir() if file.name != TEMPLATE_FILE)
    content = json.dumps([str(model.resolve()), [file.name for file in files], template])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stillroom" / "models"
    folder = cache / hashlib.sha256(content.encode()).hexdigest()[:16] / model.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        with suppress(FileExistsError):  # an earlier run, or another one at the same time
            (folder / file.name).symlink_to(file.resolve())
    if not (folder / TEMPLATE_FILE).is_file():
        write_text(folder / TEMPLATE_FILE, template)
    return folder
