from datetime import timedelta

import pytest

from flows.deploy import read_arguments
from flows.orchestration.deployment import build_schedule, check_recipes, check_server
from tasks.shared.errors import ConfigError, ErrorList, MachineError


def test_overrides_may_be_repeated() -> None:
    options = read_arguments(["tiny", "--override", "a=1", "--override", "b=2", "--interval", "60"])
    assert (options.recipe, options.override, options.interval, options.at_once) == (["tiny"], ["a=1", "b=2"], 60.0, 1)


def test_two_schedules_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["tiny", "--cron", "* * * * *", "--interval", "60"])
    assert "not allowed with" in capsys.readouterr().err


def test_schedules() -> None:
    assert build_schedule(None, None) is None
    assert build_schedule("0 3 * * *", None).cron == "0 3 * * *"
    assert build_schedule(None, 90).interval == timedelta(seconds=90)


@pytest.mark.parametrize(("cron", "interval"), [("at noon", None), ("61 * * * *", None), (None, 0.0), (None, -1.0)])
def test_schedules_that_are_none(cron: str | None, interval: float | None) -> None:
    with pytest.raises(ConfigError, match="--cron|--interval"):
        build_schedule(cron, interval)


def test_all_recipes_are_checked_and_all_problems_told() -> None:
    with pytest.raises(ErrorList) as caught:
        check_recipes(["nothing", "tiny"], ["steps.slim.ratoi=1"])
    assert "nothing" in str(caught.value) and "ratoi" in str(caught.value)


def test_a_server_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match="make ui"):
        check_server()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(MachineError, match="does not answer"):
        check_server()
