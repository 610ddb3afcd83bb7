"""Python imports this at start when its folder is in PYTHONPATH: notes every file of the project that this process opens.

STILLROOM_OPENED: the file to append to, which the processes that this one starts inherit.  STILLROOM_WATCHED: the folder
whose files count.  An import opens a module's source or its compiled copy; both are noted as they are.
"""

import os
import sys

_note = os.open(os.environ["STILLROOM_OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_watched = os.environ["STILLROOM_WATCHED"]


def _look(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = os.path.abspath(arguments[0])
        if path.startswith(_watched):
            os.write(_note, (path + "\n").encode())


sys.addaudithook(_look)
