"""DVC and the flow on one graph: whoever starts a step, the other finds it done; compared, shared, and brought back.

Every test works in a copy of one finished workshop (`cp -a` keeps hard links), in subprocesses, as a user would type it.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import pytest

from tests.project_files import matching
from tests.workshop import STEPS, Workshop, build_workshop, copy_workshop

BELOW_SLIM = ["slim", "student", "verdict"]
"""What a changed setting of slim makes run again."""
STUDENT = "student: {inputs: {model: slim, data: corpus}, ratio: 0.3}"
OWN_RECIPE = """# @package _global_
defaults:
  - /curate@steps.corpus: support
  - _self_
name: {name}
steps: {{corpus: {{knowledge: {folder}, articles: 2, train_size: 48, test_size: 12, calibration_size: 4, min_train_phrasings: 2}}}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Recipe toy made by the flow, toy_too by DVC, both committed."""
    shop = build_workshop(tmp_path_factory.mktemp("dvc") / "shop")
    flow(shop)
    assert sorted(shop.executed()) == sorted(STEPS)
    done(shop.dvc("repro", "--quiet", "toy_too-verdict"))
    assert sorted(shop.executed()) == sorted(STEPS)
    commit(shop, "first")
    return shop


@pytest.fixture
def shop(finished: Workshop, tmp_path: Path) -> Workshop:
    return copy_workshop(finished, tmp_path / "shop")


def done(result: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def flow(shop: Workshop, *arguments: str, recipe: str = "toy") -> "subprocess.CompletedProcess[str]":
    return done(shop.compress(f"+recipe={recipe}", *arguments))


def repro(shop: Workshop, *stages: str) -> list[str]:
    """Names of the steps that `dvc repro` ran, of all recipes or up to these stages."""
    done(shop.dvc("repro", "--quiet", *stages))
    return sorted(shop.executed())


def commit(shop: Workshop, message: str) -> None:
    shop.git("add", "-A")
    shop.git("commit", "-qm", message)


def edit(shop: Workshop, name: str, old: str, new: str) -> None:
    path = shop.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def set_ratio(shop: Workshop, old: str, new: str) -> None:
    edit(shop, "conf/recipe/toy.yaml", f"ratio: {old}}}", f"ratio: {new}}}")


def content(shop: Workshop, step: str, recipe: str = "toy") -> dict[str, object]:
    found: dict[str, object] = json.loads((shop.folder / f"artifacts/{recipe}/{step}/out/content.json").read_text())
    return found


def test_what_one_made_the_other_finds_done(shop: Workshop) -> None:
    assert repro(shop) == []
    assert "nothing to do" in flow(shop).stderr
    assert "nothing to do" in flow(shop, recipe="toy_too").stderr
    assert shop.executed() == []
    assert shop.git("status", "--porcelain") == ""
    assert "up to date" in shop.dvc("status").stdout


def test_a_changed_setting_runs_the_steps_below_it_and_the_old_value_runs_nothing(shop: Workshop) -> None:
    set_ratio(shop, "0.25", "0.3")
    said = flow(shop).stderr
    assert "steps.slim.ratio: 0.25 -> 0.3" in said
    assert sorted(shop.executed()) == BELOW_SLIM
    assert repro(shop) == []
    set_ratio(shop, "0.3", "0.35")
    done(shop.python("flows.sync"))
    assert repro(shop) == BELOW_SLIM
    assert "nothing to do" in flow(shop).stderr and shop.executed() == []
    set_ratio(shop, "0.35", "0.25")
    flow(shop)
    assert shop.executed() == [] and content(shop, "slim")["ratio"] == 0.25
    assert repro(shop) == []
    assert shop.git("status", "--porcelain") == "", "dvc.lock is again what was committed"
    set_ratio(shop, "0.25", "0.3")
    done(shop.python("flows.sync"))
    assert repro(shop) == [] and content(shop, "slim")["ratio"] == 0.3


def test_edited_code_runs_what_uses_it_and_a_comment_stops_there(shop: Workshop) -> None:
    code = "tasks/prune/toy.py"
    edit(shop, code, "import hashlib", "# a remark\nimport hashlib")
    flow(shop)
    assert sorted(shop.executed()) == ["slim", "small"], "the same output: nothing below them runs"
    assert repro(shop, "toy-verdict") == []
    edit(shop, code, "# a remark", "# another remark")
    assert repro(shop) == ["slim", "slim", "small", "small"], "of both recipes"
    assert "nothing to do" in flow(shop).stderr and shop.executed() == []
    edit(shop, code, '"text": self.text,', '"text": self.text, "version": 2,')
    flow(shop)
    assert sorted(shop.executed()) == ["slim", "small", "student", "verdict"]
    assert repro(shop, "toy-verdict") == []


def test_differences_are_shown(shop: Workshop) -> None:
    edit(shop, "conf/recipe/toy.yaml", "candidates: [student, small]}}", "candidates: [student, small]}, ratio: 0.9}")
    edit(shop, "conf/recipe/toy.yaml", "student: {inputs: {model: slim, data: corpus}}", STUDENT)
    flow(shop)
    params = json.loads(done(shop.dvc("params", "diff", "--json")).stdout)["params.yaml"]
    assert params["recipes.toy.steps.student.ratio"] == {"old": 0.5, "new": 0.3, "diff": pytest.approx(-0.2)}
    assert sorted(params) == ["recipes.toy.steps.student.ratio", "recipes.toy.steps.verdict.ratio"]
    figures = json.loads(done(shop.dvc("metrics", "diff", "--json")).stdout)
    assert figures == {
        "artifacts/toy/verdict/out/metrics.json": {"student.fact": {"old": 0.5, "new": 0.9, "diff": 0.4}}
    }
    assert "0.9" in done(shop.dvc("metrics", "show")).stdout
    done(shop.dvc("plots", "diff", "HEAD"))
    page = (shop.folder / "dvc_plots/index.html").read_text()
    assert "toy: loss of student" in page and "workspace" in page and "HEAD" in page
    assert "isValid(datum" in page, "a blank in the table is no point, and not 0"
    shown = done(shop.dvc("plots", "diff", "HEAD", "--targets", "toy-student-loss", "--json")).stdout
    drawn = json.loads(shown)["data"]["toy-student-loss"]
    assert {revision for plot in drawn for revision in plot["revisions"]} == {"HEAD", "workspace"}
    assert "dvc_plots" not in shop.git("status", "--porcelain")


def test_an_experiment_in_the_workspace_and_the_recipe_after_it(shop: Workshop) -> None:
    done(shop.dvc("exp", "run", "--quiet", "--name", "sharper", "-S", "recipes.toy.steps.slim.ratio=0.4"))
    assert sorted(shop.executed()) == BELOW_SLIM
    edited = (shop.folder / "params.yaml").read_text()
    flow(shop, "runtime.sync=false")
    assert (shop.folder / "params.yaml").read_text() == edited and content(shop, "slim")["ratio"] == 0.4
    said = flow(shop).stderr
    assert "steps.slim.ratio: 0.4 -> 0.25" in said and "params.before.yaml" in said
    assert (shop.folder / ".dvc/tmp/params.before.yaml").read_text() == edited
    assert shop.executed() == [] and content(shop, "slim")["ratio"] == 0.25
    done(shop.dvc("exp", "apply", "sharper"))
    assert content(shop, "slim")["ratio"] == 0.4
    assert repro(shop) == []
    assert "sharper" in done(shop.dvc("exp", "list", "--name-only")).stdout


def test_an_experiment_in_a_temporary_copy_shares_the_store(shop: Workshop) -> None:
    done(shop.compress("+recipe=toy", "steps.slim.ratio=0.4"))  # a variant of the flow
    assert sorted(shop.executed()) == BELOW_SLIM
    done(shop.dvc("exp", "run", "--quiet", "--temp", "--name", "known", "-S", "recipes.toy.steps.slim.ratio=0.4"))
    assert shop.executed() == [], "what the flow made, the experiment finds"
    done(shop.dvc("exp", "run", "--quiet", "--temp", "--name", "fresh", "-S", "recipes.toy.steps.slim.ratio=0.45"))
    assert sorted(shop.executed()) == BELOW_SLIM
    assert shop.git("status", "--porcelain") == "" and content(shop, "slim")["ratio"] == 0.25
    done(shop.compress("+recipe=toy", "steps.slim.ratio=0.45"))
    assert shop.executed() == [], "what the experiment made, the flow finds"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 API on loopback with an empty bucket."""
    httpx = pytest.importorskip("httpx")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    assert httpx.put(f"{url}/stillroom").is_success
    yield url
    server.stop()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_fresh_clone_pulls_and_runs_nothing(
    shop: Workshop, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    clone = Workshop(tmp_path / "clone")
    shop.git("clone", "-q", str(shop.folder), str(clone.folder))
    key = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
    key["AWS_EC2_METADATA_DISABLED"] = "true"
    for place in (shop, clone):
        url = "s3://stillroom/dvc" if kind == "s3" else str(tmp_path / "remote")
        done(place.dvc("remote", "add", "--local", "--default", "far", url))
        if kind == "s3":
            endpoint = request.getfixturevalue("s3")
            done(place.dvc("remote", "modify", "--local", "far", "endpointurl", endpoint))
    done(shop.dvc("push", "--quiet", env=key))
    done(clone.dvc("pull", "--quiet", env=key))
    assert "nothing to do" in flow(clone).stderr
    assert "nothing to do" in flow(clone, recipe="toy_too").stderr
    assert clone.executed() == [] and repro(clone) == []
    assert content(clone, "student") == content(shop, "student")
    assert clone.git("status", "--porcelain") == ""
    assert "nobody" not in (clone.folder / ".dvc/config").read_text()


def test_an_older_commits_model_comes_back(shop: Workshop) -> None:
    before = content(shop, "student")
    set_ratio(shop, "0.25", "0.3")
    flow(shop)
    commit(shop, "second")
    assert content(shop, "student") != before
    shop.executed()
    shop.git("checkout", "-q", "HEAD~1")
    done(shop.dvc("checkout", "--quiet"))
    assert content(shop, "student") == before
    assert "nothing to do" in flow(shop).stderr and repro(shop) == []
    shop.git("checkout", "-q", "-")
    flow(shop)  # without `dvc checkout`: the store has it
    assert content(shop, "slim")["ratio"] == 0.3 and repro(shop) == []
    assert shop.executed() == [] and shop.git("status", "--porcelain") == ""


def test_two_recipes_at_once_do_not_clobber_each_other(shop: Workshop) -> None:
    set_ratio(shop, "0.25", "0.3")
    edit(shop, "conf/recipe/toy_too.yaml", "ratio: 0.75", "ratio: 0.8")
    command = ["python", "-m", "flows.compress", "runtime.orchestrator=none", "tracking=none"]
    both = [
        subprocess.Popen(
            [*command, f"+recipe={name}"],
            cwd=shop.folder,
            env=shop.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("toy", "toy_too")
    ]
    said = [child.communicate(timeout=240)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert sorted(shop.executed()) == sorted([*BELOW_SLIM, "small", "verdict"])
    params = (shop.folder / "params.yaml").read_text()
    assert "ratio: 0.3\n" in params and "ratio: 0.8\n" in params
    assert content(shop, "slim")["ratio"] == 0.3 and content(shop, "slim", "toy_too")["ratio"] == 0.25
    assert repro(shop) == [] and "stage" not in "".join(said).lower()


def test_a_flow_beside_dvc_repro_makes_every_step_once(shop: Workshop) -> None:
    edit(shop, "conf/recipe/toy.yaml", "{text: one}", "{text: three, delay_s: 4}")
    done(shop.python("flows.sync"))
    command = ["python", "-m", "dvc", "repro", "--quiet", "toy-verdict"]
    other = subprocess.Popen(command, cwd=shop.folder, env=shop.environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not shop.log.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    said = flow(shop).stderr
    complaint = other.communicate(timeout=120)[1]
    assert other.returncode == 0, complaint + said
    assert sorted(shop.executed()) == sorted(STEPS)
    assert repro(shop) == []


def test_what_was_never_recorded_is_recorded_by_the_next_run(shop: Workshop) -> None:
    set_ratio(shop, "0.25", "0.3")
    flow(shop, "runtime.dvc=false")  # as after a kill between a step's end and its record
    assert sorted(shop.executed()) == BELOW_SLIM
    flow(shop)
    assert shop.executed() == [] and repro(shop) == []
    (shop.folder / "dvc.lock").write_text("stages: {toy-slim: 7\n<<<<<<< HEAD\n")
    said = flow(shop).stderr
    assert "dvc.lock: line" in said and "merge conflict" in said and "git checkout HEAD -- dvc.lock" in said
    (shop.folder / "dvc.lock").unlink()
    flow(shop)
    assert shop.executed() == []
    assert (
        "toy-slim" in (shop.folder / "dvc.lock").read_text() and "toy_too" not in (shop.folder / "dvc.lock").read_text()
    )


def test_a_kill_amid_dvcs_writing_is_mended_by_the_next_run(shop: Workshop) -> None:
    lock, temporary = shop.folder / "dvc.lock", shop.folder / ".dvc/tmp"
    whole = lock.read_text()
    lock.write_text("")
    (temporary / "rwlock").write_text('{"write": {"')
    flow(shop)
    assert all(f"  toy-{name}:" in lock.read_text() for name in STEPS), "an empty file held nothing that could be lost"
    lock.write_text(whole[: whole.index("  toy_too-slim:")])  # all that this recipe asks for is there
    (temporary / "dvc.lock.before").write_text(whole)
    said = flow(shop).stderr
    assert "dvc.lock is restored" in said
    assert lock.read_text() == whole and not (temporary / "dvc.lock.before").exists()
    assert shop.executed() == [] and repro(shop) == []


RECORD = """
import logging, subprocess, sys
from pathlib import Path
import yaml
from flows.versioning import commit as dvc
logging.basicConfig(format="%(message)s")
stage, key, case = sys.argv[1:]
if case == "edited":
    commit = subprocess.run
    def meanwhile(*arguments, **options):
        done = commit(*arguments, **options)
        with Path("tasks/prune/toy.py").open("a") as code:
            code.write("# edited\\n")
        return done
    dvc.subprocess.run = meanwhile
if case == "busy":
    import zc.lockfile
    held = zc.lockfile.LockFile(".dvc/tmp/lock")
print(dvc.record({stage: key}, patience_s=0), dvc.recorded(stage, key))
"""


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("plain", ""),
        ("other key", "its code, settings, files or inputs changed"),
        ("edited", "changed in the meantime"),
        ("busy", "Unable to acquire lock"),
    ],
)
def test_only_what_a_step_was_made_from_is_recorded_with_it(shop: Workshop, case: str, words: str) -> None:
    manifest = json.loads((shop.folder / "artifacts/toy/slim/manifest.json").read_text())
    key = "0" * 64 if case == "other key" else manifest["key"]
    lock = shop.folder / "dvc.lock"
    lock.unlink()
    runs = {path: path.unlink() for path in (shop.folder / ".dvc/cache/runs").glob("*/*/*")}
    said = done(shop.command(sys.executable, "-c", RECORD, "toy-slim", key, case))
    good = case == "plain"
    assert said.stdout.strip() == ("['toy-slim'] True" if good else "[] False")
    assert words in said.stderr and bool(said.stderr) is not good
    assert ("toy-slim" in lock.read_text() if lock.exists() else False) is good
    assert bool([path for path in runs if path.exists()]) is good, "nothing false in the run cache either"
    assert (shop.folder / "artifacts/toy/slim/manifest.json").exists()


def test_a_users_own_file_runs_its_step_again_in_both(finished: Workshop, tmp_path: Path) -> None:
    shop = copy_workshop(finished, tmp_path / "shop")
    shutil.copytree(shop.folder / "tasks/curate/shop/knowledge", shop.folder / "my_knowledge")
    shutil.copytree(shop.folder / "tasks/curate/shop/knowledge", tmp_path / "far_knowledge")
    for name, folder in (("near", "my_knowledge"), ("far", tmp_path / "far_knowledge")):
        recipe = OWN_RECIPE.format(name=name, folder=folder)
        (shop.folder / f"conf/recipe/{name}.yaml").write_text(recipe)
    done(shop.python("flows.sync", "near", "far", "--remove", "toy", "--remove", "toy_too"))
    text = (shop.folder / "dvc.yaml").read_text()
    assert "    - my_knowledge\n" in text and f"    - {tmp_path}/far_knowledge\n" in text and "toy" not in text
    made = {name: shop.folder / f"artifacts/{name}/corpus/manifest.json" for name in ("near", "far")}
    for name in made:
        flow(shop, recipe=name)
    assert "up to date" in done(shop.dvc("status")).stdout
    first = {name: path.read_text() for name, path in made.items()}
    for folder in (shop.folder / "my_knowledge", tmp_path / "far_knowledge"):
        file = sorted(folder.glob("*.yaml"))[0]
        file.write_text(file.read_text() + "\n# a remark\n")
    done(shop.dvc("repro", "--quiet"))
    assert all(made[name].read_text() != first[name] for name in made)
    assert all("nothing to do" in flow(shop, recipe=name).stderr for name in made)


def test_a_damaged_file_is_made_anew_also_in_dvcs_cache(shop: Workshop) -> None:
    file = shop.folder / "artifacts/toy/slim/out/content.json"
    good = file.read_bytes()
    digest = md5(good, usedforsecurity=False).hexdigest()
    cached = shop.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    assert cached.samefile(file) and not file.stat().st_mode & 0o222, "one read-only copy"
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    file.chmod(0o444)
    assert cached.read_bytes() == b"damaged", "hard links share the damage"
    flow(shop)
    assert shop.executed() == ["slim"]
    assert file.read_bytes() == cached.read_bytes() == good
    done(shop.dvc("checkout", "--force", "--quiet"))
    assert file.read_bytes() == good and repro(shop) == []


def test_store_view_and_cache_share_one_copy(shop: Workshop) -> None:
    blocks = {}
    for path in shop.folder.rglob("*"):
        if path.name == "content.json" or re.fullmatch("[0-9a-f]{30}", path.name):
            blocks.setdefault(path.read_bytes(), set()).add(path.stat().st_ino)
    contents = [path.read_bytes() for path in shop.folder.glob("artifacts/*/*/out/content.json")]
    assert len(contents) == 2 * len(STEPS)
    assert all(len(blocks[text]) == 1 for text in contents)
    assert all(path.stat().st_mode & 0o222 == 0 for path in matching("artifacts/.store/*/*/out/*", root=shop.folder))
