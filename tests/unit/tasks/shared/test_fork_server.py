"""A server that forks: what it forks is as a fresh process is, and neither outlives its client."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.shared import isolation
from tasks.shared.fork_client import WITHOUT_THREADS, ForkServer, ServerDied
from tasks.shared.fork_server import INHERITED
from tasks.shared.processes import ProcessId
from tasks.shared.store.keys import PROJECT

LIBRARIES = ["numpy", "torch", "transformers:AutoModelForCausalLM", "datasets"]


@pytest.fixture(scope="module")
def server() -> ForkServer:
    """The one from which this process forks what it isolates, so that the libraries are loaded once."""
    return isolation._server(os.getpid())


def request(script: str, **more: Any) -> dict[str, Any]:
    plain = {
        "entry": "builtins:exec",
        "arguments": [script, {}],
        "environment": dict(os.environ),
        "directory": "/",
        "own_group": True,
    }
    return plain | more


def run(server: ForkServer, script: str, **more: Any) -> tuple[int, str]:
    """Exit code and output of a script in a forked process."""
    reading, writing = os.pipe()
    forked = server.fork(writing, request(script, **more))
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    code = forked.wait(60)
    forked.close()
    return code, said


TELL = """
import json, os, sys, torch
print(json.dumps({
    "cwd": os.getcwd(), "variable": os.environ.get("TELL"), "ours": [name for name in sys.modules if name.split(".")[0] in {"tasks", "flows"}],
    "loaded": "transformers.models.auto.modeling_auto" in sys.modules, "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
    "cuda": torch.cuda.is_initialized(), "server": len(os.listdir(f"/proc/{os.getppid()}/task")),
    "omp": os.environ["OMP_NUM_THREADS"], "spare": os.environ.get("STILLROOM_FORK_SERVER", ""), "pid": os.getpid(),
}))
"""


def test_a_forked_process_is_a_fresh_one_with_libraries(server: ForkServer, tmp_path: Path) -> None:
    environment = {**os.environ, "TELL": "x", "OMP_NUM_THREADS": "1"}
    code, said = run(server, TELL, modules=LIBRARIES, environment=environment, directory=str(tmp_path), spare=True)
    told = json.loads(said)
    assert code == 0
    assert told.pop("spare").partition(":")[2] == str(told.pop("pid"))
    assert told == {
        "cwd": str(tmp_path), "variable": "x", "ours": [], "loaded": True, "leads": True, "cuda": False, "server": 1, "omp": "1",
    }  # fmt: skip


def test_blas_has_the_threads_that_the_environment_says(server: ForkServer) -> None:
    script = "import threadpoolctl; print({i['num_threads'] for i in threadpoolctl.threadpool_info() if i['user_api'] == 'blas'})"
    for count in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": count}
        assert run(server, script, modules=LIBRARIES, environment=environment) == (0, f"{{{count}}}\n")


def test_random_numbers_differ(server: ForkServer) -> None:
    script = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert run(server, script, modules=LIBRARIES) != run(server, script, modules=LIBRARIES)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(130)", 130),
        ("import sys; sys.exit('words')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    ],
)
def test_exit_codes_are_exact(server: ForkServer, script: str, code: int) -> None:
    assert run(server, script)[0] == code


def test_what_a_process_must_do_at_its_end_is_done(server: ForkServer) -> None:
    script = "import atexit, threading, time; atexit.register(print, 'left'); threading.Thread(target=lambda: (time.sleep(0.2), print('joined'))).start()"
    assert run(server, script) == (0, "joined\nleft\n")


def test_an_edited_module_is_never_stale(server: ForkServer, tmp_path: Path) -> None:
    file = tmp_path / "edited_module.py"
    for number in (1, 2):
        file.write_text(f"print({number})" + " " * number)  # Python's compiled files are told by second and size
        assert run(server, "import edited_module", path=[str(tmp_path), *sys.path]) == (0, f"{number}\n")


def test_a_process_whose_client_lets_go_is_killed(server: ForkServer) -> None:
    reading, writing = os.pipe()
    forked = server.fork(writing, request("import time; print('up', flush=True); time.sleep(60)"))
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.readline() == "up\n"
        forked.close()
        assert stream.read() == "", "until the pipe closes"


def test_a_server_with_threads_refuses_to_fork(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    server = ForkServer.start(["threaded"], {**os.environ, "PYTHONPATH": str(tmp_path)})
    try:
        with pytest.raises(ServerDied, match=r"started 1 thread: \w+"):
            server.fork(2, request("pass", modules=["threaded"])).wait(60)
    finally:
        server.close()


CLIENT = """
import os, time
from tasks.shared.fork_client import ForkServer
server = ForkServer.start([], quiet=True)
forked = server.fork(1, {"entry": "time:sleep", "arguments": [600], "environment": dict(os.environ), "directory": "/", "own_group": True, "spare": True})
while forked.pid is None:
    try:
        forked.wait(0.05)
    except Exception:
        pass
print(server.process.pid, forked.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["client", "server"])
def test_nobody_is_left_when_one_is_killed(victim: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert client.stdout is not None
        server, forked = (ProcessId.of(int(pid)) for pid in client.stdout.readline().split())
        spare = [ProcessId.of(child.pid) for child in psutil.Process(forked.pid).children()]
        (client.kill if victim == "client" else psutil.Process(server.pid).kill)()
        # a forked process of ours watches its flow by itself (`end_with`); this one only sleeps
        left = [server, forked, *spare] if victim == "client" else [server]
        deadline = time.monotonic() + 10
        while any(process.is_alive() for process in left):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if victim == "server":
            os.killpg(forked.pid, signal.SIGKILL)
    finally:
        client.kill()
        client.communicate()


ISOLATED = """
import os, psutil
from tasks.shared import isolation
isolation.PRELOADED.clear()
found = [isolation.run_isolated(os.getpgid, 0), isolation.run_isolated(os.getppid)]
print(found == [os.getpid(), psutil.Process().children()[0].pid], len(psutil.Process().children()))
"""


def test_isolated_runs_of_a_forked_process_are_forked_from_its_spare(server: ForkServer) -> None:
    """In its group, so that they end with it; and from a process that has no threads, without another import of the libraries."""
    path = [str(PROJECT), *sys.path]
    assert run(server, ISOLATED, modules=LIBRARIES, spare=True, path=path) == (0, "True 1\n")


IMPORTS_LATER = """
import os
from tasks.shared import isolation
isolation.PRELOADED[:] = ["numpy"]
print(isolation.run_isolated(os.getpgid, 0) == os.getpid())
"""


def test_a_spare_server_may_import_what_would_start_threads() -> None:
    """OpenBLAS has a thread per core if nothing keeps it from that."""
    environment = {name: value for name, value in os.environ.items() if name not in WITHOUT_THREADS}
    plain = ForkServer.start([], environment)
    try:
        path = [str(PROJECT), *sys.path]
        assert run(plain, IMPORTS_LATER, spare=True, path=path, environment=environment) == (0, "True\n")
    finally:
        plain.close()


def test_only_the_process_that_was_given_a_server_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INHERITED, f"3:{os.getpid() + 1}")
    assert ForkServer.inherited() is None
