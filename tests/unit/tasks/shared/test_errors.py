"""Errors as messages: they are the same in another process."""

import pickle

import pytest

from flows.running.child import StepFailed
from tasks.shared.errors import ConfigError, ErrorList, MachineError, StillroomError

LOST = MachineError("http://localhost", "no answer", "a server", "start it", retryable=True)


@pytest.mark.parametrize(
    "error", [LOST, ConfigError("steps.a.b", "3"), ErrorList([LOST, ConfigError("c", "d")]), StepFailed("a", "b")]
)
def test_an_error_that_crosses_to_another_process_is_the_same(error: StillroomError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.retryable == error.retryable
    assert str(getattr(again, "errors", ())) == str(getattr(error, "errors", ()))
