"""python -m flows.sync as a user types it: track, untrack, and what it says of a broken file."""

from pathlib import Path

import pytest

from tests.workshop import Workshop, build_workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("sync") / "shop")


def sync(shop: Workshop, *arguments: str) -> tuple[int, str]:
    result = shop.python("flows.sync", *arguments)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def test_a_recipe_is_untracked_and_tracked_again(shop: Workshop) -> None:
    params, stages = (shop.folder / name for name in ("params.yaml", "dvc.yaml"))
    before = params.read_text(), stages.read_text()
    assert sync(shop, "--check") == (0, "up to date\n")
    assert sync(shop, "--remove", "toy_too", "--check")[0] == 1
    assert (params.read_text(), stages.read_text()) == before, "--check changes nothing"
    assert sync(shop, "--remove", "toy_too") == (0, "changed: params.yaml, dvc.yaml\n")
    assert "toy_too" not in params.read_text() + stages.read_text() and "toy-slim:" in stages.read_text()
    assert sync(shop, "toy_too")[0] == 0
    assert (params.read_text(), stages.read_text()) == before
    assert sync(shop) == (0, "changed: nothing\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing_like_it",), "nothing_like_it"),
        (("--remove", "nothing_like_it"), "'nothing_like_it' is not tracked"),
        (("--remove", "toy", "--remove", "toy_too"), "no tracked recipe"),
    ],
)
def test_a_wrong_name_is_one_message(shop: Workshop, arguments: tuple[str, ...], words: str) -> None:
    code, said = sync(shop, *arguments)
    assert code == 2 and words in said
    assert shop.git("status", "--porcelain") == ""


CONFLICT = "<<<<<<< HEAD\n  toy: 1\n=======\n  toy: 2\n>>>>>>> other\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("params.yaml", "recipes:\n" + CONFLICT, "params.yaml: line 2: a merge conflict"),
        ("params.yaml", "recipes: [toy]\n", "`recipes` does not hold recipes"),
        ("params.yaml", "recipes: {toy: 1}\n", "`recipes` does not hold recipes"),
        ("params.yaml", "garbage", "no mapping at the top"),
        ("dvc.yaml", "stages:\n" + CONFLICT, "dvc.yaml: line 2: a merge conflict"),
        ("dvc.yaml", "stages: {mine: {cmd: make}}\n", "stages that flows.sync did not write: mine"),
    ],
)
def test_a_broken_file_is_one_message_and_is_left_alone(shop: Workshop, name: str, text: str, words: str) -> None:
    path = shop.folder / name
    good = path.read_text()
    path.write_text(text)
    try:
        code, said = sync(shop)
        assert code == 2 and words in said and "fix:" in said
        result = shop.compress("+recipe=toy")
        assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr
        assert path.read_text() == text and shop.executed() == []
    finally:
        path.write_text(good)


def test_stages_of_a_users_own_may_live_in_a_folder(shop: Workshop) -> None:
    folder: Path = shop.folder / "mine"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {hello: {cmd: echo hello > hello.txt, outs: [hello.txt]}}\n")
    assert sync(shop) == (0, "changed: nothing\n")
    listed = shop.dvc("stage", "list", "-R", ".").stdout
    assert "hello" in listed and "toy_too-slim" in listed
