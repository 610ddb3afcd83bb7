"""Prefect around a run of toys: nothing left behind without a server; with one, all that its pages promise."""

import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.prefect_server import (
    Server,
    intervals,
    leftovers,
    overlap,
    run_server,
    runs_now,
    started,
    wait_until,
)
from tests.workshop import STEPS, Workshop, add_toy, build_workshop

QUICK = ("tracking=none", "runtime.dvc=false", "runtime.orchestrator=prefect")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
EDGES = {
    ("corpus", "tuned"),
    ("tuned", "slim"),
    ("corpus", "slim"),
    ("tuned", "small"),
    ("slim", "student"),
    ("corpus", "student"),
    ("tuned", "verdict"),
    ("student", "verdict"),
    ("small", "verdict"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    built = build_workshop(tmp_path_factory.mktemp("prefect") / "checkout")
    add_toy(built.folder, "prune", "shaky", retries=2)
    add_toy(built.folder, "prune", "fast")
    on_gpu = built.folder / "tasks/prune/fast.py"
    text = on_gpu.read_text()
    assert "libraries=()," in text
    on_gpu.write_text(text.replace("libraries=(),", 'libraries=(), device="accelerator",'))
    yield built
    assert not leftovers(built)


@pytest.fixture(scope="module")
def server(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(shop, tmp_path_factory.mktemp("server")) as running:
        yield running


def flow(shop: Workshop, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return shop.compress("+recipe=toy", *arguments, *QUICK, **options)


def background(*arguments: str) -> tuple[str, ...]:
    return ("flows.compress", "+recipe=toy", *arguments, *QUICK)


def is_clean(done: "subprocess.CompletedProcess[str]") -> bool:
    said = done.stdout + done.stderr
    return not any(words in said for words in ("Traceback", " | ERROR", " | INFO", " | WARNING"))


def no_half_artifact(shop: Workshop, step: str) -> bool:
    return all((entry / "manifest.json").exists() for entry in shop.folder.glob(f"artifacts/.store/{step}/*"))


def database(shop: Workshop, query: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(shop.folder / ".prefect/prefect.db")) as opened:
        return opened.execute(query).fetchall()


# Without a server


@contextmanager
def dead_server(answers: bool) -> Iterator[dict[str, str]]:
    """The address of a server that takes requests and never answers, or takes none."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if answers:
            mute.listen()
        yield {"PREFECT_API_URL": f"http://127.0.0.1:{mute.getsockname()[1]}/api"}


@pytest.fixture(scope="module")
def beside_another(shop: Workshop) -> "subprocess.CompletedProcess[str]":
    """A flow beside another on a new database; its server of the user's never answers."""
    with dead_server(True) as address, started(shop, *background("seed=100")) as other:
        done = flow(shop, "seed=101", env=address)
        said, _ = other.communicate(timeout=240)
    assert other.returncode == 0, said
    return done


def test_two_flows_at_once_on_a_new_database_leave_states_and_no_process(
    shop: Workshop, beside_another: "subprocess.CompletedProcess[str]"
) -> None:
    assert beside_another.returncode == 0, beside_another.stderr
    assert is_clean(beside_another)
    assert sorted(database(shop, "select name, state_type from flow_run")) == [
        ("toy seed=100", "COMPLETED"),
        ("toy seed=101", "COMPLETED"),
    ]
    tasks = database(shop, "select name, state_type from task_run")
    assert sorted(tasks) == sorted((step, "COMPLETED") for step in STEPS for _ in range(2)), "no state is lost at exit"
    assert not leftovers(shop)


def test_a_killed_flow_leaves_no_process_and_is_swept_by_the_next(shop: Workshop) -> None:
    with started(shop, *background("seed=102", "steps.slim.delay_s=600")) as child:
        wait_until(lambda: runs_now(shop, "slim"))
        child.kill()
        child.wait()
        wait_until(lambda: not leftovers(shop), 30)
    assert no_half_artifact(shop, "slim")
    failing = flow(shop, "seed=102", "steps.slim.fail=broken")
    assert failing.returncode == 2 and "steps.slim: broken" in failing.stderr and is_clean(failing), failing.stderr
    assert "an earlier run's process is gone" in failing.stderr
    assert not leftovers(shop), "nor after a step that failed"
    runs = dict(database(shop, "select name, state_type from flow_run where name like '%seed=102%'"))
    assert runs == {
        "toy seed=102 steps.slim.delay_s=600": "CRASHED",
        "toy seed=102 steps.slim.fail=broken": "FAILED",
    }
    assert {state for (state,) in database(shop, "select state_type from task_run")} <= FINAL


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "while the server starts"),
        (signal.SIGTERM, "while the server starts"),
        (signal.SIGTERM, "while a step runs"),
        pytest.param(signal.SIGINT, "while a step runs", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_flow_leaves_no_process(shop: Workshop, number: int, moment: str) -> None:
    with started(shop, *background(f"seed={200 + number}", "steps.slim.delay_s=600")) as child:
        if moment == "while a step runs":
            wait_until(lambda: runs_now(shop, "slim"))
        else:
            wait_until(lambda: any("flows.orchestration.temporary_server" in line for line in leftovers(shop)))
        child.send_signal(number)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
    assert not leftovers(shop)
    if moment == "while a step runs":
        run = database(shop, f"select id, state_type from flow_run where name like '%seed={200 + number} %'")[0]
        assert run[1] == "CRASHED"
        tasks = database(shop, f"select name, state_type from task_run where flow_run_id = '{run[0]}'")
        assert {state for _, state in tasks} <= FINAL


@pytest.mark.parametrize("answers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_dead_server_is_one_warning(
    shop: Workshop, beside_another: "subprocess.CompletedProcess[str]", answers: bool
) -> None:
    done = beside_another
    if not answers:
        with dead_server(False) as address:
            done = flow(shop, "seed=300", env=address)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not answer") == 1 and is_clean(done), done.stderr
    assert not leftovers(shop)


QUICK_TASKS = """
import sys
from pathlib import Path
from flows.orchestration.servers import Servers

servers = Servers()
servers.choose(Path.cwd())
from prefect import flow, runtime, task
from prefect.events.worker import EventsWorker
from flows.orchestration.runs import settle

@task(task_run_name="quick")
def nothing(): ...

@flow
def many():
    servers.until_end.callback(settle, str(runtime.flow_run.id), lambda: 150)
    [future.result() for future in [nothing.submit() for _ in range(150)]]

many()
EventsWorker.drain_all(timeout=10)
servers.until_end.close()
"""


def test_the_states_of_many_quick_tasks_are_kept(shop: Workshop) -> None:
    done = shop.command(sys.executable, "-c", QUICK_TASKS)
    assert done.returncode == 0, done.stderr
    states = database(shop, "select state_type, count(*) from task_run where name = 'quick' group by 1")
    assert states == [("COMPLETED", 150)]
    assert not leftovers(shop)


TWO_COMMANDS = """
import os, sys
from flows.compress import cli

for seed in ("411", "412"):
    sys.argv = ["compress", "+recipe=toy", f"seed={seed}", *QUICK]
    cli()
assert "PREFECT_API_URL" not in os.environ and "PREFECT_HOME" not in os.environ
"""


def test_a_second_command_in_one_process_is_a_command_of_its_own(shop: Workshop) -> None:
    done = shop.command(sys.executable, "-c", TWO_COMMANDS.replace("QUICK", repr(QUICK)))
    assert done.returncode == 0 and is_clean(done), done.stderr
    assert done.stdout.count("models") == 2 and "2 jobs" not in done.stdout
    states = database(shop, "select name, state_type from flow_run where name like '%seed=41%' order by 1")
    assert states == [("toy seed=411", "COMPLETED"), ("toy seed=412", "COMPLETED")]
    assert not leftovers(shop)


# With a server


def test_a_run_on_the_pages(shop: Workshop, server: Server) -> None:
    shop.log.unlink(missing_ok=True)
    settings = ("seed=1", "steps.slim.delay_s=6", "steps.small.delay_s=3", "runtime.parallel=2")
    name = "toy seed=1 steps.slim.delay_s=6 steps.small.delay_s=3"
    seen: set[float] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            if server.flow_run(name):
                seen.update(art["data"] for key, art in server.artifacts(name).items() if key == "toy-slim-progress")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        done = flow(shop, *settings, env=server.environment)
    finally:
        over.set()
        thread.join()
    assert done.returncode == 0 and is_clean(done), done.stderr
    assert f"watch it at http://127.0.0.1:{server.port}/" in done.stderr
    run = server.flow_run(name)
    assert run["state"]["type"] == "COMPLETED"
    assert {"recipe:toy", "variant"} <= set(run["tags"])
    assert server.edges(name) == EDGES
    tasks = server.tasks(name)
    assert {task: found["state"]["name"] for task, found in tasks.items()} == dict.fromkeys(STEPS, "Completed")
    assert {"recipe:toy", "prune"} <= set(tasks["slim"]["tags"])
    assert len([share for share in seen if 0 < share < 100]) >= 2, "the bar moves while the step works"
    artifacts = server.artifacts(name)
    assert artifacts["toy-slim"]["type"] == "table" and "0.25" in artifacts["toy-slim"]["data"]
    assert "Do not ship" in artifacts["toy-result"]["data"]
    times = intervals(shop)
    assert overlap(times["small"], times["slim"]), "branches run beside each other"
    assert not any(overlap(times["verdict"], times[step]) for step in STEPS[:-1]), "who measures time is alone"

    again = flow(shop, *settings, env=server.environment)
    assert again.returncode == 0, again.stderr
    assert {task["state"]["name"] for task in server.tasks(name).values()} == {"Cached"}


def test_only_what_may_pass_is_tried_again(shop: Workshop, server: Server) -> None:
    overrides = ("seed=2", "prune@steps.small=shaky", "steps.small.flaky=1", "steps.student.fail=broken")
    done = flow(shop, *overrides, env=server.environment)
    assert done.returncode == 2 and "steps.student: broken" in done.stderr and is_clean(done), done.stderr
    run = f"toy {' '.join(overrides)}"
    tasks = server.tasks(run)
    assert (server.state(run), tasks["student"]["state"]["type"]) == ("FAILED", "FAILED")
    assert (tasks["small"]["run_count"], tasks["student"]["run_count"]) == (2, 1)
    assert "AwaitingRetry" in server.history(tasks["small"])
    assert tasks["small"]["state"]["type"] == "COMPLETED", "another branch goes on"
    assert "broken" in tasks["student"]["state"]["message"] and "verdict" not in tasks


def test_steps_on_a_gpu_never_overlap(shop: Workshop, server: Server) -> None:
    shop.log.unlink(missing_ok=True)
    overrides = ("seed=3", "prune@steps.small=fast", "prune@steps.slim=fast")
    delays = ("steps.slim.delay_s=1", "steps.small.delay_s=1")
    arguments = (*overrides, *delays, "runtime.parallel=2", "runtime.device=cuda")
    done = flow(shop, *arguments, env=server.environment | {"CUDA_VISIBLE_DEVICES": "0"})
    assert done.returncode == 0, done.stderr
    times = intervals(shop)
    assert not overlap(times["small"], times["slim"])
    tasks = server.tasks(f"toy {' '.join([*overrides, *delays])}")
    assert {step for step in STEPS if "gpu" in tasks[step]["tags"]} == {"slim", "small"}
    assert server.post("/v2/concurrency_limits/filter")[0]["limit"] == 1


def test_memory_holds_branches_apart(shop: Workshop) -> None:
    shop.log.unlink(missing_ok=True)
    arguments = (
        "steps.slim.delay_s=0.5",
        "steps.small.delay_s=0.5",
        "runtime.parallel=2",
        "runtime.memory_gb=0.000001",
    )
    done = shop.compress("+recipe=toy", "seed=4", *arguments, "tracking=none", "runtime.orchestrator=none")
    assert done.returncode == 0, done.stderr
    times = intervals(shop)
    assert not any(overlap(times[one], times[other]) for one in STEPS for other in STEPS if one != other)


def test_a_cancelled_run_ends_its_step(shop: Workshop, server: Server) -> None:
    run = "toy seed=5 steps.slim.delay_s=600"
    with started(shop, *background("seed=5", "steps.slim.delay_s=600"), env=server.environment) as child:
        wait_until(lambda: runs_now(shop, "slim"))
        server.cancel(run)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in said, said
    assert said.count("interrupted; finished steps are kept") == 1
    assert server.state(run) == "CANCELLED"
    assert server.tasks(run)["slim"]["state"]["type"] == "CANCELLED"
    assert no_half_artifact(shop, "slim") and not leftovers(shop)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_shown_as_crashed(shop: Workshop, server: Server, number: int) -> None:
    run = f"toy seed={60 + number} steps.slim.delay_s=600"
    with started(shop, *background(f"seed={60 + number}", "steps.slim.delay_s=600"), env=server.environment) as child:
        wait_until(lambda: runs_now(shop, "slim"))
        child.send_signal(number)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in said, said
    assert server.state(run) == "CRASHED"
    assert {task["state"]["type"] for task in server.tasks(run).values()} <= FINAL
    assert not leftovers(shop)


def test_a_killed_run_is_swept_and_a_live_one_is_not(shop: Workshop, server: Server) -> None:
    killed, live = "toy seed=7 steps.slim.delay_s=600", "toy seed=8 steps.slim.delay_s=600"
    with started(shop, *background("seed=7", "steps.slim.delay_s=600"), env=server.environment) as child:
        wait_until(lambda: runs_now(shop, "slim"))
        child.kill()
        child.wait()
    assert server.state(killed) == "RUNNING"
    wait_until(lambda: not leftovers(shop), 30)
    with started(shop, *background("seed=8", "steps.slim.delay_s=600"), env=server.environment) as child:
        wait_until(lambda: runs_now(shop, "slim"))
        assert server.state(killed) == "CRASHED"
        assert {task["state"]["type"] for task in server.tasks(killed).values()} <= FINAL
        other = shop.compress("+recipe=toy_too", *QUICK, env=server.environment)
        assert other.returncode == 0, other.stderr
        assert server.state(live) == "RUNNING"
        server.cancel(live)
        child.communicate(timeout=60)
    assert server.state(live) == "CANCELLED"


@pytest.mark.slow
def test_a_server_that_dies_takes_no_step_with_it(shop: Workshop, tmp_path: Path) -> None:
    with (
        run_server(shop, tmp_path / "home") as server,
        started(shop, *background("seed=9", "steps.slim.delay_s=5"), env=server.environment) as child,
    ):
        wait_until(lambda: runs_now(shop, "slim"))
        server.kill()
        said, _ = child.communicate(timeout=240)
    assert child.returncode == 0 and "Traceback" not in said, said
    assert "went away" in said
    again = shop.compress("+recipe=toy", "seed=9", "tracking=none", "runtime.dvc=false")
    assert "nothing to do: all 6 steps" in again.stderr, again.stderr


# Deployments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "nothing"),
        (("toy", "--override", "steps.slim.ratoi=1"), "steps.slim.ratoi"),
        (("toy",), "PREFECT_API_URL: not set"),
    ],
)
def test_a_deployment_that_cannot_work_is_refused(shop: Workshop, arguments: tuple[str, ...], words: str) -> None:
    done = shop.python("flows.deploy", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_schedule_that_is_none_is_refused(shop: Workshop, server: Server) -> None:
    done = shop.python("flows.deploy", "toy", "--cron", "at noon", env=server.environment)
    assert done.returncode == 2 and "--cron: 'at noon'" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_deployment_runs_the_same_flow(shop: Workshop, server: Server) -> None:
    base = ("tracking=none", "runtime.dvc=false")

    def start(*overrides: str) -> None:
        """As the button on the deployment's page does."""
        path = f"/deployments/{deployment['id']}/create_flow_run"
        server.post(path, parameters={"overrides": [*overrides, *base]}, state={"type": "SCHEDULED"})

    def type_start(*overrides: str) -> None:
        listed = ", ".join(f'"{item}"' for item in (*overrides, *base))
        words = ("prefect", "deployment", "run", "compress/toy", "-p", f"overrides=[{listed}]")
        done = shop.command(*words, env=server.environment)
        assert done.returncode == 0, done.stdout + done.stderr

    serving = ("flows.deploy", "toy", "--cron", "0 3 * * *", "--override", "seed=1")
    with started(shop, *serving, env=server.environment) as child:
        wait_until(lambda: server.post("/deployments/filter", deployments={"name": {"any_": ["toy"]}}))
        deployment = server.post("/deployments/filter")[0]
        assert deployment["parameters"] == {"recipe": "toy", "overrides": ["seed=1"]}
        assert deployment["tags"] == ["recipe:toy"] and deployment["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
        type_start("seed=1", "steps.slim.ratio=0.1")
        run = "toy seed=1 steps.slim.ratio=0.1"
        wait_until(lambda: server.state(run) in FINAL, 120)
        assert server.state(run) == "COMPLETED" and server.edges(run) == EDGES
        assert {"toy-result", "toy-slim"} <= set(server.artifacts(run))

        start("seed=1", "steps.slim.delay_s=600", "steps.slim.ratio=0.2")
        cancelled = "toy seed=1 steps.slim.delay_s=600 steps.slim.ratio=0.2"
        wait_until(lambda: runs_now(shop, "slim"))
        server.cancel(cancelled)
        wait_until(lambda: server.state(cancelled) == "CANCELLED", 60)
        wait_until(lambda: not any("flows.stage" in line for line in leftovers(shop)), 30)
        assert server.tasks(cancelled)["slim"]["state"]["type"] == "CANCELLED"

        shop.log.unlink()
        start("seed=1", "steps.slim.delay_s=600", "steps.slim.ratio=0.3")
        wait_until(lambda: runs_now(shop, "slim"))
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "no longer served" in said and "Traceback" not in said, said
    wait_until(lambda: not leftovers(shop), 30)
    assert server.state("toy seed=1 steps.slim.delay_s=600 steps.slim.ratio=0.3") == "CRASHED"
