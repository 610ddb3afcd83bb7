"""Chat templates as Jinja text: changes to them, and the format of a model without one.

A change is written into the template itself, which the artifact carries.  So training, evaluation, export and every engine that
later serves the artifact (transformers, llama.cpp, vLLM) render the same prompt.
"""

import re
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = date(2024, 7, 26)
"""Date that templates with a clock write; it is also the one that Llama 3's template falls back to."""
CLOCKS = ("strftime_now", "date_string")
"""Function and variable from which templates take today's date."""
PROGRAM_ERRORS = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)
"""Exceptions of a template's program, besides jinja2's TemplateError: it divides by zero, or loops beyond the sandbox's limit."""
HELD = "{#- The date is held still -#}"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML (OpenAI's chat markup) without a default system message.

The embedded model's own template inserts its maker's system text into conversations without one; ours all have one.
"""
PLAIN = (
    "{% for message in messages %}{{ {'user': 'User', 'assistant': 'Assistant'}.get(message['role'], message['role'] | capitalize) "
    "+ ': ' + message['content'] + (eos_token if message['role'] == 'assistant' else '') + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Plain text for a model without a template: turns with the name of their role, a blank line after each, an end after an answer."""
START = "{{ bos_token }}"
MERGED = "{#- Consecutive turns of one role are joined, and a greeting before the first user turn is left out -#}"
FOLDED = "{#- A system turn is put before the next user turn -#}"
_MERGE = (
    MERGED + "{%- set joined = namespace(turns=[]) -%}{%- for message in messages -%}"
    "{%- if joined.turns and joined.turns[-1].role == message.role and message.role in ['user', 'assistant']"
    " and not message.tool_calls and not joined.turns[-1].tool_calls -%}"
    "{%- set joined.turns = joined.turns[:-1] + [{'role': message.role, 'content': joined.turns[-1].content + '\n\n' + message.content}] -%}"
    "{%- elif message.role != 'assistant' or (joined.turns and joined.turns[-1].role != 'system') -%}"
    "{%- set joined.turns = joined.turns + [message] -%}{%- endif -%}{%- endfor -%}{%- set messages = joined.turns -%}{{- '' }}"
)
_FOLD = (
    FOLDED + "{%- set folded = namespace(turns=[], text='') -%}{%- for message in messages -%}"
    "{%- if message.role in ['system', 'developer'] -%}{%- set folded.text = folded.text + message.content + '\n\n' -%}"
    "{%- elif message.role == 'user' and folded.text -%}"
    "{%- set folded.turns = folded.turns + [{'role': 'user', 'content': folded.text + message.content}] -%}{%- set folded.text = '' -%}"
    "{%- else -%}{%- set folded.turns = folded.turns + [message] -%}{%- endif -%}{%- endfor -%}"
    "{%- if folded.text -%}{%- set folded.turns = folded.turns + [{'role': 'user', 'content': folded.text | trim}] -%}{%- endif -%}"
    "{%- set messages = folded.turns -%}{{- '' }}"
)
_DIRECTIVES = "aAbBdmyYHIMSpjeFDc"


def pinned(template: str, day: date = DATE) -> str:
    """Return the template with its clock held at midnight of `day`.

    It is unchanged if it has none, or if it is held already.
    A format that the template computes is filled in by a macro of the clock's name.  `date_string` is set as well, since llama.cpp
    gives today's date to templates that read it (Llama 3's).
    """
    if HELD in template:
        return template
    call = re.compile(CLOCKS[0] + r"""\(\s*(?:format\s*=\s*)?(?:"([^"]*)"|'([^']*)')\s*\)""")
    text = call.sub(lambda found: _quoted(day.strftime(found[1] or found[2] or "")), template)
    if re.search(CLOCKS[0] + r"\s*\(", text):
        fills = "".join(f" | replace('%{each}', {_quoted(day.strftime('%' + each))})" for each in _DIRECTIVES)
        macro = "{%- macro " + CLOCKS[0] + "(format) -%}{{ format | replace('%-', '%')" + fills + " }}{%- endmacro -%}"
        text = macro + "{{- '' }}" + text
    if mentions(text, CLOCKS[1]):
        text = with_variable(text, CLOCKS[1], day.strftime("%d %b %Y"))
    return text if text == template else HELD + text


def has_clock(template: str) -> bool:
    """Return True if the template writes the current date or time."""
    return pinned(template) != template


def mentions(template: str, name: str) -> bool:
    """Return True if the template reads a variable of this name."""
    code = re.findall(r"{%.*?%}|{{.*?}}", template, re.DOTALL)
    words = (re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "", part) for part in code)
    return any(re.search(rf"(?<![\w.]){name}\b", part) for part in words)


def with_variable(template: str, name: str, value: "str | bool") -> str:
    """Return the template with a variable set, whatever the caller passes."""
    shown = str(value).lower() if isinstance(value, bool) else _quoted(value)
    return "{%- set " + name + " = " + shown + " -%}{{- '' }}" + template


def folding(template: str) -> str:
    """Return the template with system turns put before the next user turn."""
    return template if FOLDED in template else _FOLD + template


def merging(template: str) -> str:
    """Return the template with consecutive turns of one role joined by a blank line.

    An assistant's greeting before the first user turn is left out.
    """
    return template if MERGED in template else _MERGE + template


def plain_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the plain-text format, with a start of text if the tokenizer puts one before texts."""
    ids: Any = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    text = PLAIN if tokenizer.eos_token else with_variable(PLAIN, "eos_token", "")
    return START + text if begins else text


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
