"""Python imports this at start when its folder is in PYTHONPATH: notes every file of the project that this process opens.

STILLROOM_WATCHED: the folder whose files count.  STILLROOM_OPENED: the file to append to; nothing is noted without it.
Both are inherited by the processes that this one starts.  An import opens a module's source or its compiled copy.
"""

import os
import sys
from pathlib import Path


def _look(event: str, arguments: tuple) -> None:
    note = os.environ.get("STILLROOM_OPENED")
    if note and event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = str(Path(arguments[0]).absolute())
        if path.startswith(os.environ["STILLROOM_WATCHED"]):
            file = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, (path + "\n").encode())
            os.close(file)


sys.addaudithook(_look)
