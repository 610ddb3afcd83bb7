"""Targets of an answer key: a right answer in a form that can be graded."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Words = Annotated[str, Field(min_length=1, pattern=r"\S")]


def _json_text(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return text


def _object_text(text: str) -> str:
    if text and not isinstance(json.loads(_json_text(text)), dict):
        raise ValueError("not a JSON object")
    return text


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Target):
    """One label of the task."""

    type: Literal["label"] = "label"
    label: Words


class Labels(_Target):
    """A set of labels, in any order; may be empty."""

    type: Literal["labels"] = "labels"
    labels: tuple[Words, ...] = ()


class Facts(_Target):
    """Facts that the answer must state: one string of every group."""

    type: Literal["facts"] = "facts"
    groups: Annotated[tuple[Annotated[tuple[Words, ...], Field(min_length=1)], ...], Field(min_length=1)]


class Decline(_Target):
    """The answer must decline the request."""

    type: Literal["decline"] = "decline"


class Text(_Target):
    """Reference answers; the reply may be worded differently."""

    type: Literal["text"] = "text"
    references: Annotated[tuple[Words, ...], Field(min_length=1)]


class Number(_Target):
    """A number, the last one that the answer states.

    tolerance: largest absolute difference that counts as equal.
    """

    type: Literal["number"] = "number"
    value: Annotated[float, Field(allow_inf_nan=False)]
    tolerance: Annotated[float, Field(ge=0)] = 1e-6


class Json(_Target):
    """A JSON value.

    value: JSON text.  schema_text: JSON Schema as JSON text, or empty.  ignore: top-level fields that are not compared.
    """

    type: Literal["json"] = "json"
    value: Annotated[Words, AfterValidator(_json_text)]
    schema_text: Annotated[str, AfterValidator(_object_text)] = ""
    ignore: tuple[str, ...] = ()


class Call(_Target):
    """A call of one tool.

    arguments: JSON text of an object.
    """

    type: Literal["call"] = "call"
    name: Words
    arguments: Annotated[str, AfterValidator(_object_text)] = "{}"


class NoCall(_Target):
    """No tool may be called."""

    type: Literal["no_call"] = "no_call"


class Choice(_Target):
    """One of several options.

    right: index of the correct option.
    """

    type: Literal["choice"] = "choice"
    options: Annotated[tuple[Words, ...], Field(min_length=2)]
    right: Annotated[int, Field(ge=0)]

    def model_post_init(self, _: Any) -> None:
        """Raise ValueError if `right` is not an index of `options`."""
        if self.right >= len(self.options):
            raise ValueError(f"right is {self.right}, but there are {len(self.options)} options")


Target = Annotated[
    Label | Labels | Facts | Decline | Text | Number | Json | Call | NoCall | Choice, Field(discriminator="type")
]
"""One entry of an answer key; several may apply to a row."""
