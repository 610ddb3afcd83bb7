"""JSON answers: parsing, canonical form, schema and agreement of fields."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from tasks.shared.errors import DataError
from tasks.shared.formats.targets import Json

NO_JSON: Final = object()
"""Result of parsing text that is not JSON (None is the JSON value null)."""
FENCE = re.compile(r"```[ \t]*(?:json[c5]?)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def parse_json(text: str) -> Any:
    """Parse an answer that is JSON, or holds it in a code fence; `NO_JSON` for any other text.

    NaN and infinite numbers are refused, as by most readers.
    """
    for part in (text, *FENCE.findall(text)):
        try:
            return json.loads(part, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            continue
    return NO_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large")
    return value


def canonical_json(value: Any) -> str:
    """Serialize a JSON value so that equal values have equal texts.

    Keys are sorted, and 1.0 is written as 1; true stays different from 1.
    """
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def compared(value: Any, target: Json) -> Any:
    """Return the value without the top-level fields that the target ignores."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if name not in target.ignore}


def canonical_answer(text: str, target: Json) -> str:
    """Return the compared part of a JSON answer in canonical form; "" if it is not JSON."""
    value = parse_json(text)
    return "" if value is NO_JSON else canonical_json(compared(value, target))


def json_exact(text: str, target: Json) -> bool:
    """Return True if the answer equals the target up to the order of keys and ignored fields."""
    return canonical_answer(text, target) == canonical_json(compared(json.loads(target.value), target))


def fits_schema(text: str, target: Json) -> bool:
    """Return True if the answer is JSON and valid by the target's schema.

    Raises DataError for a schema that is not valid, or refers to another document: nothing is fetched.
    """
    from jsonschema.exceptions import SchemaError, _WrappedReferencingError
    from jsonschema.validators import validator_for
    from referencing import Registry

    value = parse_json(text)
    if value is NO_JSON:
        return False
    schema = json.loads(target.schema_text)
    checker = validator_for(schema)
    try:
        checker.check_schema(schema)
        return bool(checker(schema, registry=Registry()).is_valid(value))
    except (SchemaError, _WrappedReferencingError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise DataError("schema of a JSON target", reason, "a JSON Schema without references elsewhere") from error


def field_f1(text: str, target: Json) -> float:
    """F1 of the fields, 0..1: pairs of a path and a value, in any order of list items.

    0 if the answer is not JSON.
    """
    value = parse_json(text)
    if value is NO_JSON:
        return 0.0
    given = Counter(_fields(compared(value, target)))
    wanted = Counter(_fields(compared(json.loads(target.value), target)))
    total = given.total() + wanted.total()
    return 2 * (given & wanted).total() / total if total else 1.0


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and canonical value of every leaf.

    An empty list or object is a leaf, except at the top.
    """
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _fields(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for item in value:
            yield from _fields(item, f"{path}[]")
    elif path or not isinstance(value, dict | list):
        yield path, canonical_json(value)
