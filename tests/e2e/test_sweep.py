"""Sweeps and the command line's corners, as a user types them."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.workshop import STEPS, Workshop, add_toy, build_workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop with a second pruning technique, whose recipe `toy` has run as written."""
    shop = build_workshop(tmp_path_factory.mktemp("sweep") / "shop")
    add_toy(shop.folder, "prune", "toy2")
    shop.git("add", "-A")
    shop.git("commit", "-qm", "another technique")
    done = shop.compress("+recipe=toy")
    assert done.returncode == 0, done.stderr
    assert sorted(shop.executed()) == sorted(STEPS)
    shop.git("add", "-A")
    shop.git("commit", "-qm", "dvc.lock")
    return shop


def test_a_sweep_over_techniques_and_settings_shares_all_that_is_common(shop: Workshop) -> None:
    done = shop.compress("+recipe=toy", "--multirun", "prune@steps.slim=toy,toy2", "steps.slim.ratio=0.2,0.4")
    assert done.returncode == 0, done.stderr
    executed = shop.executed()
    assert {name: executed.count(name) for name in STEPS} == {
        "corpus": 0, "tuned": 0, "slim": 4, "small": 0, "student": 2, "verdict": 2,
    }, "both toys write the same at the same ratio, so that what follows is shared too"  # fmt: skip
    assert "4 jobs over prune@steps.slim, steps.slim.ratio" in done.stdout and "slim=toy2 ratio=0.4" in done.stdout
    best = " ".join(done.stdout.split()).partition("Best by verdict: ")[2]
    assert re.match(r"job 0 \(slim=toy ratio=0.2\), do not ship: student \([^)]+\) loses ", best), best
    page = Path(done.stdout.rpartition("sweep  ")[2].strip())
    assert page.parent == shop.folder / "artifacts/.sweeps" and "Fact accuracy of student over" in page.read_text(
        "utf-8"
    )
    assert shop.git("status", "--short") == "", "a sweep leaves no trace in git"
    again = shop.compress("prune@steps.slim=toy,toy2", "--multirun", "steps.slim.ratio=0.2,0.4", "+recipe=toy")
    assert again.returncode == 0 and shop.executed() == []
    assert list(page.parent.iterdir()) == [page], "the same sweep, typed in another order"


def test_a_failing_job_does_not_stop_the_others(shop: Workshop) -> None:
    done = shop.compress("+recipe=toy", "--multirun", "steps.slim.ratio=0.11,7e9,0.12", 'steps.slim.fail="boom",""')
    executed = shop.executed()
    assert done.returncode == 2
    assert executed.count("slim") == 3 and executed.count("verdict") == 3
    assert done.stdout.count("failed: step slim") == 3 and "Traceback" not in done.stderr


def test_a_job_that_cannot_be_planned_does_not_stop_the_others(shop: Workshop) -> None:
    done = shop.compress("+recipe=toy", "--multirun", "steps.slim.inputs.model=nowhere,tuned")
    assert done.returncode == 2 and "no step or model 'nowhere'" in done.stderr
    assert "do not ship" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--multirun", "+recipe=toy", "steps.slim.ratio=0.2,0.4"),
        ("steps.slim.ratio=0.2,0.4", "+recipe=toy", "-m"),
        ("+recipe=toy", "-m", "steps.slim.ratio=0.2,0.4", "~steps.verdict", "dry_run=true"),
    ],
)
def test_flags_and_overrides_in_any_order(shop: Workshop, arguments: tuple[str, ...]) -> None:
    done = shop.compress(*arguments, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan of toy") == 2


def test_a_folder_whose_name_looks_like_an_override_is_still_a_flags_value(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "a=b" / "recipe").mkdir(parents=True)
    text = (shop.folder / "conf/recipe/toy.yaml").read_text().replace("name: toy", "name: mine")
    (tmp_path / "a=b" / "recipe" / "mine.yaml").write_text(text)
    done = shop.compress("+recipe=mine", "--config-dir", str(tmp_path / "a=b"), "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "plan of mine" in done.stdout


def test_from_any_working_directory_with_recipes_of_ones_own(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    text = (shop.folder / "conf/recipe/toy.yaml").read_text().replace("name: toy", "name: mine")
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text(text)
    elsewhere = {"PYTHONPATH": str(shop.folder)}
    done = shop.compress("--config-dir", "conf", "+recipe=mine", cwd=tmp_path, env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert shop.executed() == [], "it is the same work as the recipe toy's"
    assert (shop.folder / "artifacts/mine/verdict/out/verdict.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"], "nothing is left behind here"


def test_a_recipe_under_another_files_name_is_refused(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "other.yaml").write_text((shop.folder / "conf/recipe/toy.yaml").read_text())
    done = shop.compress("+recipe=other", "--config-dir", str(tmp_path))
    assert done.returncode == 2 and "name: 'toy' in the file recipe/other.yaml" in done.stderr


@pytest.mark.parametrize(
    "typo", ["+typo=1", "+steps.slim.ratoi=1", "+runtime.typo=1", "+gate.typo=1", "+steps.x.ratio=1"]
)
def test_a_typo_is_refused_whatever_its_level(shop: Workshop, typo: str) -> None:
    done = shop.compress("+recipe=toy", typo)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert shop.executed() == []


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--cfg", "all"), ("--info",), ("--info", "all")])
def test_what_hydra_shows_holds_no_secret(shop: Workshop, flags: tuple[str, ...]) -> None:
    secret = "sk-0123456789-not-real"
    hidden = {"OPENAI_API_KEY": secret, "TEACHER_KEY": secret, "MLFLOW_TRACKING_PASSWORD": secret}
    done = shop.compress("+recipe=support_bot", "steps.traces.api_key_env=TEACHER_KEY", *flags, env=hidden)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    assert "support_bot" in done.stdout + done.stderr


def test_params_that_differ_from_the_recipe_are_kept_on_request(shop: Workshop) -> None:
    file = shop.folder / "params.yaml"
    before = file.read_text()
    file.write_text(before.replace("ratio: 0.25", "ratio: 0.3", 1))
    done = shop.compress("+recipe=toy", "runtime.sync=false")
    assert done.returncode == 0, done.stderr
    assert "ratio: 0.3" in file.read_text()
    told = shop.compress("+recipe=toy")
    assert told.returncode == 0 and file.read_text() == before
    assert "ratio" in told.stderr and "0.3" in told.stderr, "it says what it overwrote"


def test_the_store_is_shown_and_cleared_of_what_nobody_shows(shop: Workshop) -> None:
    variant = shop.compress("+recipe=toy", "steps.slim.ratio=0.35")
    assert variant.returncode == 0 and "slim" in shop.executed(), "a variant, which no recipe's folder shows"
    listed = shop.python("flows.store")
    assert listed.returncode == 0 and "slim" in listed.stdout, listed.stderr
    for folder in (shop.folder / "artifacts/.store").glob("*/*"):
        os.utime(folder, (0, 0))
        for inner in folder.iterdir():
            inner.chmod(0o755 if inner.is_dir() else 0o644)
            os.utime(inner, (0, 0))
    would = shop.python("flows.store", "gc", "--older", "1", "--dry-run")
    kept = len(list((shop.folder / "artifacts/.store").glob("*/*")))
    assert "would be deleted" in would.stderr and kept > len(STEPS)
    gone = shop.python("flows.store", "gc", "--older", "1")
    assert gone.returncode == 0, gone.stderr
    left = {path.parent.name for path in (shop.folder / "artifacts/.store").glob("*/*")}
    assert left == set(STEPS), "what the recipes' folders show stays"
    again = shop.compress("+recipe=toy")
    assert again.returncode == 0 and shop.executed() == []
    assert shop.python("flows.store", "gc", "--older", "-1").returncode == 2


def test_the_jobs_of_a_sweep_share_one_prefect_server_that_ends_with_it(shop: Workshop) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.compress",
        "+recipe=toy",
        "-m",
        "steps.slim.ratio=0.51,0.52",
        "tracking=none",
    ]
    sweep = subprocess.Popen(
        command, cwd=shop.folder, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    servers: set[psutil.Process] = set()
    while sweep.poll() is None:
        with suppress(psutil.Error):
            children = psutil.Process(sweep.pid).children()
            servers |= {child for child in children if "flows.orchestration.temporary_server" in child.cmdline()}
        time.sleep(0.1)
    assert sweep.stdout is not None
    said = sweep.stdout.read()
    sweep.stdout.close()
    assert sweep.returncode == 0, said
    assert "2 jobs" in said and len(servers) == 1
    assert not any(server.is_running() for server in servers)
