"""JSON answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.shared.errors import DataError
from tasks.shared.formats.targets import Call, Json
from tasks.shared.grading.json_values import NO_JSON, field_f1, fits_schema, json_exact, parse_json

SCHEMA = json.dumps({"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]})
INVOICE = Json(
    value='{"total": 12, "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}], "at": "10:00"}',
    schema_text=SCHEMA,
    ignore=("at",),
)


@pytest.mark.parametrize(
    ("text", "exact", "share", "valid"),
    [
        ('{"lines": [{"n": 1.0, "sku": "a"}, {"n": 2, "sku": "b"}], "total": 12.0}', True, 1.0, True),
        ('Here it is:\n```json\n{"total": 12, "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}], "at": "9:00"}\n```', True, 1.0, True),
        ('{"total": 12}', False, 2 / 6, True), ('{"total": "12"}', False, 0.0, False), ("{}", False, 0.0, False), ("total: 12", False, 0.0, False),
        ('{"total": NaN}', False, 0.0, False), ("[12]", False, 0.0, False), ("", False, 0.0, False),
        ('{"total": 12, "lines": [{"sku": "b", "n": 2}, {"sku": "a", "n": 1}]}', False, 1.0, True),
    ],
)  # fmt: skip
def test_measures_of_an_extraction(text: str, exact: bool, share: float, valid: bool) -> None:
    assert json_exact(text, INVOICE) == exact
    assert field_f1(text, INVOICE) == pytest.approx(share)
    assert fits_schema(text, INVOICE) == valid


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_exact_answers_have_all_fields(value: object) -> None:
    text = json.dumps(value)
    assert json_exact(text, Json(value=text))
    assert field_f1(text, Json(value=text)) == 1.0


def test_null_is_json() -> None:
    assert parse_json("null") is None
    assert parse_json("nothing") is NO_JSON


@pytest.mark.parametrize("schema", ['{"type": 7}', '{"$ref": "https://example.org/other.json"}'])
def test_a_schema_that_cannot_be_used_is_an_error(schema: str) -> None:
    with pytest.raises(DataError, match="JSON Schema"):
        fits_schema("{}", Json(value="{}", schema_text=schema))


@pytest.mark.parametrize(
    "make",
    [lambda: Json(value="{a"), lambda: Json(value="{}", schema_text="[]"), lambda: Call(name="a", arguments="[1]")],
)
def test_targets_that_are_no_json_are_refused(make: object) -> None:
    with pytest.raises(ValidationError):
        make()  # type: ignore[operator]
