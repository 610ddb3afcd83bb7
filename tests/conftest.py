"""What holds for every test."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
# A run of the tests that was begun by `nohup` or `&` ignores Ctrl-C, and so would every program that a test interrupts.
