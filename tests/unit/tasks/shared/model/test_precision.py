"""The arithmetic that "auto" stands for."""

import pytest
import torch

from tasks.shared.model import precision


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_hardware_decides(monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str) -> None:
    monkeypatch.setattr(precision, "is_bfloat16_fast", lambda: fast)
    assert precision.fast_dtype("cpu") == dtype
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert precision.fast_dtype("cuda") == dtype


def test_a_setting_names_a_type_or_leaves_it_to_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_bfloat16_fast", lambda: True)
    assert precision.chosen_dtype("auto", "cpu") == "bfloat16"
    assert precision.chosen_dtype("float32", "cpu") == "float32"
