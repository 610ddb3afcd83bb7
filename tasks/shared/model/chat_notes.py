"""Limits of a model's chat template for the plan, found without loading its tokenizer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.shared.model.chat_settings import own_template
from tasks.shared.model.template_edits import DATE, PROGRAM_ERRORS, has_clock, pinned
from tasks.shared.model.weights import is_gguf

USER, ANSWER, SYSTEM = ({"role": role, "content": f"\u241e{role}\u241e"} for role in ("user", "assistant", "system"))


def chat_notes(name: str, model: Path) -> list[str]:
    """Return a sentence for each limit of a model's chat template.

    There is none for a GGUF file.

    name: of the model in the recipe, such as models.student.
    """
    if is_gguf(model):
        return []
    try:
        template, specials = own_template(model), _special_texts(model)
    except (ValueError, OSError, AttributeError):  # loading the tokenizer reports it
        return []
    if not template:
        return [
            f"{name} has no chat template: plain text (or ChatML, if its vocabulary has that markup) is used; set {name}.template to use another"
        ]
    return list(_limits(name, template, specials))


def _limits(name: str, template: str, specials: Mapping[str, str]) -> Iterator[str]:
    if has_clock(template):
        yield f"{name}: its chat template writes today's date, which is held at {DATE}; {name}.date sets another"
    text = pinned(template)
    if not _render(text, [USER, ANSWER], specials):
        yield f"{name}: its chat template does not render a question and its answer"
        return
    if SYSTEM["content"] not in _render(text, [SYSTEM, USER], specials):
        yield f"{name}: its chat template takes no system turn; {name}.system=fold puts one into the user's next turn"
    if not (_render(text, [USER, USER, ANSWER], specials) and _render(text, [ANSWER, USER, ANSWER], specials)):
        yield f"{name}: its chat template demands that user and assistant alternate: consecutive turns of one role are joined"


def _special_texts(model: Path) -> dict[str, str]:
    """Texts of bos_token and eos_token in a folder's tokenizer configuration."""
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    tokens = ((name, config.get(name) or "") for name in ("bos_token", "eos_token"))
    return {name: str(token.get("content", "") if isinstance(token, dict) else token) for name, token in tokens}


def _render(template: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, str]) -> str:
    """Render a conversation as transformers would; empty if the template refuses it."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The mark around an assistant's tokens, which only trainers read."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = refuse
    try:
        return env.from_string(template).render(
            messages=list(messages), tools=None, add_generation_prompt=False, **specials
        )
    except (TemplateError, *PROGRAM_ERRORS):
        return ""


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
