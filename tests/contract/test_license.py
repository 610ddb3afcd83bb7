"""The license is in the package and says whose it is."""

import tomllib

from tasks.shared.store.keys import PROJECT


def test_the_license_is_in_the_package() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    text = "".join((PROJECT / name).read_text("utf-8") for name in project["license-files"])
    assert project["license"] == "Apache-2.0" and "Apache License" in text and "Stillroom contributors" in text
