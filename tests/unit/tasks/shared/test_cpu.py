"""The processor's arithmetic, from excerpts of /proc/cpuinfo."""

import pytest

from tasks.shared.cpu import cpu_flags, is_bfloat16_fast

INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f {}\n\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f {}\n"
AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("facts", "fast"),
    [
        (INTEL.format("amx_bf16 avx512_bf16", "amx_bf16 avx512_bf16"), True),
        (INTEL.format("avx512_bf16", "avx512_bf16"), False),
        (INTEL.format("", ""), False),
        (AMD.format("avx512f avx512_bf16"), True),
        (AMD.format("sse4a"), False),
        (ARM.format("bf16 i8mm"), True),
        (ARM.format("asimdhp"), False),
        ("", False),
    ],
)
def test_bfloat16_is_fast_with_amx_with_amds_avx512_and_on_arm(facts: str, fast: bool) -> None:
    assert is_bfloat16_fast(facts) is fast


def test_flags_are_those_of_the_first_processor() -> None:
    assert cpu_flags("model name\t: flags of a kind\n" + AMD.format("avx512f")) == {"fpu", "avx2", "avx512f"}
    assert cpu_flags("") == frozenset()
