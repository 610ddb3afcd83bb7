"""A technique's declaration: what is misspelled or contradicts itself cannot be declared."""

from typing import Any

import pytest

from tasks.shared.technique import Kind, Spec

GIVEN: dict[str, Any] = {"summary": "A toy", "ports": {}, "produces": Kind.CORPUS, "libraries": ()}


@pytest.mark.parametrize("field", ["retrys", "alone", "scales", "unkeyd", "acepts"])
def test_a_misspelled_field_is_an_error(field: str) -> None:
    with pytest.raises(TypeError, match=field):
        Spec(**GIVEN, **{field: 1})


def test_fields_have_names_and_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        Spec("A toy", {}, Kind.CORPUS, ())  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Spec(**GIVEN).retries = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("produces", "gives"), [(Kind.MODEL, None), (Kind.ENGINE, None), (Kind.CORPUS, "dense"), (Kind.SCORES, "same")]
)
def test_models_have_weights_and_nothing_else_has(produces: Kind, gives: Any) -> None:
    with pytest.raises(ValueError, match="gives"):
        Spec(**{**GIVEN, "produces": produces, "gives": gives})


@pytest.mark.parametrize(
    ("produces", "gives", "files"),
    [(Kind.ENGINE, "packed", None), (Kind.MODEL, "dense", "gguf"), (Kind.CORPUS, None, "onnx")],
)
def test_engines_have_files_of_a_form_and_nothing_else_has(produces: Kind, gives: Any, files: Any) -> None:
    with pytest.raises(ValueError, match="files"):
        Spec(**{**GIVEN, "produces": produces, "gives": gives, "files": files})
