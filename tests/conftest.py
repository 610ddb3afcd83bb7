"""What holds for every test."""

import gc
import os
import signal
import sys

import pytest

from flows.running.environment import SPIN_COUNT, SPIN_VARIABLES

signal.signal(signal.SIGINT, signal.default_int_handler)
# A run of the tests that was begun by `nohup` or `&` ignores Ctrl-C, and so would every program that a test interrupts.

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Containers often set it: each of hundreds of processes would compile all modules that it imports.

if not any(name in os.environ for name in SPIN_VARIABLES):
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)  # as in every step: there are more workers than processors

MANY_MODULES = 100
loaded = 0
"""Modules that were imported when the collector last set aside what exists."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Keep the garbage collector off the libraries: a training ends with a full collection, which takes half a second over them."""
    global loaded
    if len(sys.modules) >= loaded + MANY_MODULES:
        gc.collect()
        gc.freeze()
        loaded = len(sys.modules)
