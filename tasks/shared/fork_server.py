"""Server that has imported large libraries and forks a fresh process on request.

`fork_client.py` starts this file as a program.  It imports no project code, so a forked process imports the current files.  It has a
single thread, so a fork copies no lock or thread pool, and it never initializes CUDA, which does not survive a fork.  A forked
process differs from a fresh one only in that the libraries are already imported.

Each request arrives on its own socket as a line of JSON.  Replies: "pid N" once the process is forked, "code N" once it has ended,
"unfit REASON" if it cannot be forked.  When a client closes its socket, the server kills the process.
"""

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

INHERITED = "STILLROOM_FORK_SERVER"
"""Environment variable of a process with a spare server: descriptor of the socket to it, and the process's pid."""
FORK = b"f"
REAP_S = 2.0
PR_SET_CHILD_SUBREAPER = 36


class Server:
    """State of the program.

    control: socket on which requests arrive.  modules: still to be imported while idle.
    running: by pid of a forked process, its client's socket (None once closed) and its request.
    """

    def __init__(self, control: socket.socket, modules: Sequence[str]) -> None:
        self.control = control
        self.modules = list(modules)
        self.running: dict[int, tuple[socket.socket | None, Mapping[str, Any]]] = {}
        self.wake, self.waker = socket.socketpair()

    def serve(self) -> Callable[[], Any]:
        """Fork on request until the client is gone; return, in forked processes only, their work."""
        self._prepare()
        while True:
            while not (ready := self._poll()) and self.modules:
                load(self.modules.pop(0))
            if self.wake.fileno() in ready:
                with suppress(BlockingIOError):
                    self.wake.recv(4096)
                self._reap()
            self._kill_abandoned(ready)
            if self.control.fileno() in ready and (work := self._answer()) is not None:
                return work

    def _prepare(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client, which ends us
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.waker.setblocking(False)
        self.wake.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        if sys.platform == "linux":  # adopt orphans of forked processes, so that no zombie stays
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _poll(self) -> set[int]:
        """Return the descriptors that are readable; wait for one if all imports are done."""
        poll = select.poll()
        lines = [line for line, _ in self.running.values() if line is not None]
        for item in (self.control, self.wake, *lines):
            poll.register(item, select.POLLIN)
        return {number for number, _ in poll.poll(0 if self.modules else None)}

    def _kill_abandoned(self, ready: set[int]) -> None:
        """Kill the processes whose clients have closed their sockets."""
        for pid, (line, request) in list(self.running.items()):
            if line is not None and line.fileno() in ready:
                line.close()
                self.running[pid] = (None, request)
                self._kill(pid)

    def _answer(self) -> Callable[[], Any] | None:
        """Fork for one request; end the program if the client is gone."""
        message, descriptors, _, _ = socket.recv_fds(self.control, 1, 2)
        if not message:
            self._end()
        line, descriptor = socket.socket(fileno=descriptors[0]), descriptors[1]
        received = b""
        while not received.endswith(b"\n") and (part := line.recv(1 << 16)):
            received += part
        work = None
        if received.endswith(b"\n"):
            work = self._fork(line, descriptor, json.loads(received))
        else:
            line.close()
        if work is None:
            os.close(descriptor)
        return work

    def _fork(self, line: socket.socket, descriptor: int, request: Mapping[str, Any]) -> Callable[[], Any] | None:
        for name in request.get("modules", ()):
            load(name)
        if reason := unfit():
            with suppress(OSError), line:
                line.sendall(f"unfit {reason}\n".encode())
            return None
        gc.collect()
        gc.freeze()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._leave(line)
            return begin(descriptor, request)
        self.running[pid] = (line, request)
        with suppress(OSError):  # the client may be gone; the next poll notices
            line.sendall(f"pid {pid}\n".encode())
        return None

    def _leave(self, line: socket.socket) -> None:
        """Release the server's sockets and signal handlers in a forked process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other, _ in self.running.values():
            if other is not None:
                other.close()
        for item in (self.control, self.wake, self.waker, line):
            item.close()
        self.running.clear()

    def _reap(self) -> None:
        """Report ended processes; kill their groups before the kernel can reuse their pids."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            entry = self.running.pop(ended.si_pid, None)
            if entry is not None and entry[1].get("own_group"):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            if entry is not None and (line := entry[0]) is not None:
                with suppress(OSError), line:
                    line.sendall(f"code {os.waitstatus_to_exitcode(status)}\n".encode())

    def _kill(self, pid: int) -> None:
        own_group = self.running[pid][1].get("own_group")
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if own_group else os.kill)(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # it may not have its own group yet
            os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """End the program and all processes that it forked, and reap them."""
        for pid in self.running:
            self._kill(pid)
        deadline = time.monotonic() + REAP_S
        with suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
        os._exit(0)


def load(name: str) -> None:
    """Import a module, or "module:attribute" of a package that imports lazily.

    Ignores errors: the process that needs the module reports them.
    """
    module, _, attribute = name.partition(":")
    with suppress(Exception):
        getattr(importlib.import_module(module), attribute or "__name__", None)


def _thread_name(task: Path) -> str:
    """Name of a thread, which by default is that of the program; "ended" for one that is gone."""
    try:
        return (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended"


def unfit() -> str:
    """Reason why this process must not fork; empty if it may, and outside Linux."""
    threads = Path("/proc/self/task")
    if not threads.is_dir():
        return ""
    started = [task for task in threads.iterdir() if task.name != str(os.getpid())]
    if started:
        named = ", ".join(sorted({_thread_name(task) for task in started}))
        return f"a library has started {len(started)} thread{'s' * (len(started) > 1)}: {named}"
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "nvidia-uvm" in str(link.readlink()):
                return "a library has initialized CUDA"
    return ""


def begin(descriptor: int, request: Mapping[str, Any]) -> Callable[[], Any]:
    """Set up a forked process and return its work.

    With `spare` it forks once more; that second process returns the serving of a spare server as its work.
    """
    arguments = list(request.get("arguments", ()))
    if request.get("own_group"):
        os.setsid()
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
        reopen_streams(request["environment"].get("PYTHONIOENCODING", "utf-8"))
    else:
        arguments.insert(0, descriptor)
    own = dict(os.environ)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path[:] = request.get("path") or sys.path
    if request.get("spare") and (spare := split_off(own)) is not None:
        return spare.serve
    set_title(request.get("title", ()))
    refresh()
    return lambda: call(request["entry"], arguments)


def reopen_streams(encoding: str) -> None:
    """Open standard output and error anew, as the interpreter does at its start.

    The inherited objects describe the server's files, which may be seekable where ours are not.
    encoding: as in PYTHONIOENCODING, with or without an error handler.
    """
    name, _, errors = encoding.partition(":")
    sys.stdout = open(1, "w", encoding=name or "utf-8", errors=errors or "strict", closefd=False)  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", encoding=name or "utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: PTH123, SIM115


def split_off(environment: Mapping[str, str]) -> "Server | None":
    """Fork a spare server while this process is clean; return it in the fork, None here.

    environment: that of the server, which keeps libraries from starting threads when the spare imports them.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.environ.clear()
        os.environ.update(environment)
        return Server(theirs, ())
    theirs.close()
    os.environ[INHERITED] = f"{ours.detach()}:{os.getpid()}"
    return None


def refresh() -> None:
    """Reset state that a fork inherits: random state, log handlers, import caches, BLAS threads."""
    importlib.invalidate_caches()
    logging.root.handlers.clear()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    threads = {
        "openmp": os.environ.get("OMP_NUM_THREADS", ""),
        "blas": os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS", ""),
    }
    cores = os.cpu_count() or 1
    limits = {kind: int(count) if count.isdecimal() and int(count) else cores for kind, count in threads.items()}
    if numpy:
        with suppress(ImportError):
            importlib.import_module("threadpoolctl").threadpool_limits(limits)


def set_title(words: Sequence[str]) -> None:
    """Overwrite the inherited command line that ps shows with these words; Linux only."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        text = b"".join(word.encode() + b"\0" for word in words)[: end - start - 1]
        if text:
            ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def call(entry: str, arguments: Sequence[Any]) -> Any:
    """Call the function named "module:name"."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def end(code: object) -> None:
    """Exit as the interpreter does, but without unloading libraries, which would take seconds."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing does before its os._exit
    atexit._run_exitfuncs()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Serve; in a forked process, do its work and exit with its code."""
    work = Server(socket.socket(fileno=int(sys.argv[1])), [name for name in sys.argv[2].split(",") if name]).serve()
    while getattr(work, "__self__", None) is not None:  # a spare server's work is to serve
        work = work()
    try:
        code = work()
    except SystemExit as ended:
        code = ended.code
    end(code)


if __name__ == "__main__":
    main()
