"""Techniques whose packages an extra of pyproject.toml installs: their runs are skipped where it is not."""

from typing import Any

import pytest

from tasks.shared.extras import extra_problem


def missing_extra(technique: Any) -> str:
    """The error of a technique whose extra is not installed; empty if it is, or if it needs none.

    technique: a class or an instance.
    """
    problem = extra_problem("", technique.spec.extra, technique.spec.libraries) if technique.spec.extra else None
    return "" if problem is None else problem.got


def needs_extra(technique: Any) -> pytest.MarkDecorator:
    """A mark that skips where the technique's extra is not installed."""
    missing = missing_extra(technique)
    return pytest.mark.skipif(bool(missing), reason=f"extra {technique.spec.extra}: {missing}")
