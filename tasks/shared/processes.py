"""Processes of ours that end with the process that started them."""

import os
import signal
import threading
import time


def follow_parent(parent: int) -> None:
    """End this process when the one that started it is gone (a killed flow must not leave a step running)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
