"""Prefect's pages in a browser: what a user sees of a run.

STILLROOM_SCREENSHOTS names a folder that keeps the pictures.  Needs chromium (Debian: apt install chromium).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.prefect_server import Server, run_server, started, wait_until
from tests.workshop import STEPS, Workshop, build_workshop

BROWSER = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium; Debian: apt install chromium"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=20000",
)
WIDTHS = {"wide": "1400,1000", "narrow": "600,1000"}


@dataclass(frozen=True)
class Site:
    """A server with a run and a deployment on it."""

    server: Server
    run: str
    pictures: Path
    scratch: Path

    def dom(self, path: str, name: str) -> str:
        """The page after its scripts; taken as a picture at two widths besides."""
        assert BROWSER
        address = f"{self.server.url.removesuffix('/api')}/v2{path}"
        for width, size in WIDTHS.items():
            picture = self.pictures / f"{name}-{width}.png"
            self._browse(f"--window-size={size}", f"--screenshot={picture}", address)
            assert picture.stat().st_size > 10_000, "the page is not blank"
        return self._browse(f"--window-size={WIDTHS['wide']}", "--dump-dom", address)

    def _browse(self, *arguments: str) -> str:
        profile = self.scratch / f"profile-{len(list(self.scratch.iterdir()))}"
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("pages")
    shop: Workshop = build_workshop(base / "checkout")
    pictures = Path(os.environ.get("STILLROOM_SCREENSHOTS") or base / "pictures")
    (base / "scratch").mkdir()
    pictures.mkdir(parents=True, exist_ok=True)
    with run_server(shop, base / "server") as server:
        arguments = ("+recipe=toy", "steps.slim.ratio=0.1", "tracking=none", "runtime.orchestrator=prefect")
        done = shop.compress(*arguments, env=server.environment)
        assert done.returncode == 0, done.stderr
        with started(shop, "flows.deploy", "toy", "--cron", "0 3 * * *", env=server.environment):
            wait_until(lambda: server.post("/deployments/filter"))
            yield Site(server, server.flow_run("toy steps.slim.ratio=0.1")["id"], pictures, base / "scratch")


def test_the_run_page_names_the_run_and_its_tasks(site: Site) -> None:
    page = site.dom(f"/runs/flow-run/{site.run}?tab=TaskRuns", "run")
    for words in ("toy steps.slim.ratio=0.1", "recipe:toy", "Completed", "6 Task runs", *STEPS):
        assert words in page


def test_the_artifacts_are_listed(site: Site) -> None:
    page = site.dom(f"/runs/flow-run/{site.run}?tab=Artifacts", "artifacts")
    for words in ("toy-result", "toy-slim", "slim: a model, made"):
        assert words in page


def test_the_result_is_a_table(site: Site) -> None:
    result = next(artifact for artifact in site.server.post("/artifacts/filter") if artifact["key"] == "toy-result")
    page = site.dom(f"/artifacts/artifact/{result['id']}", "result")
    assert "<table" in page and "Do not ship" in page and "ratio 0.1" in page


def test_the_deployment_is_listed_with_its_schedule(site: Site) -> None:
    page = site.dom("/deployments", "deployments")
    for words in ("toy", "recipe:toy", "At 03:00 AM"):
        assert words in page
