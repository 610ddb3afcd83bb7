"""Plan of a file's tensors: bits, fallbacks and what they cost, and the refusal of rows that nothing fills."""

import pytest

from tasks.shared.errors import TechniqueError
from tasks.shared.gguf.types import bits, check_plan, describe_fallbacks, fitting_type, plan_tensor


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q5_0", 5.5), ("q4_1", 5), ("q4_0", 4.5), ("iq4_nl", 4.5),
     ("q4_k", 4.5), ("q6_k", 6.5625), ("tq2_0", 2.0625), ("iq1_s", 1.5625)],
)  # fmt: skip
def test_bits_per_weight(scheme: str, wanted: float) -> None:
    assert bits(scheme) == wanted


def test_rows_that_blocks_do_not_fill_take_another_type() -> None:
    assert [fitting_type(scheme, 576) for scheme in ("q4_0", "q4_k", "q6_k", "q5_k", "nvfp4")] == ["q4_0", "iq4_nl", "q8_0", "q5_1", "nvfp4"]  # fmt: skip
    assert fitting_type("q4_k", 1536) == "q4_k" and fitting_type("q4_0", 80) == "" and fitting_type("f16", 80) == "f16"


def test_fallbacks_are_counted_with_their_bits() -> None:
    plan = [plan_tensor("up", 576, 576 * 64, "q2_k"), plan_tensor("down", 1536, 1536 * 24, "q2_k")]
    check_plan(plan)
    (line,) = describe_fallbacks(plan)
    assert line.startswith(
        "q2_k becomes iq4_nl in 1 of 2 matrices, whose rows of 576 its blocks of 256 do not fill: 3.56 bits"
    )
    assert not describe_fallbacks(plan[1:])


def test_rows_that_no_type_fills_are_refused_with_a_way_out() -> None:
    with pytest.raises(
        TechniqueError, match=r"blocks of 256 weights \(q4_k\) do not fill the rows of up \(row=576\)"
    ) as caught:
        check_plan([plan_tensor("up", 576, 576, "q4_k", fallback=False), plan_tensor("down", 1536, 1536, "q4_k")])
    assert "fix: fallback=true" in str(caught.value)
    with pytest.raises(TechniqueError, match="scheme=f16"):
        check_plan([plan_tensor("down", 80, 80, "q4_0")])
