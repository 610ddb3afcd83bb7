"""Names of this machine's processors, and the arithmetic that its CPU is fast in."""

import platform
from pathlib import Path


def cpu_facts() -> str:
    """Return the text of /proc/cpuinfo; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return ""


def cpu_flags(facts: str) -> frozenset[str]:
    """Return the instruction sets in a text of /proc/cpuinfo.

    facts: `cpu_facts`; x86 lists them as flags, Arm as Features.
    """
    lines = (line for line in facts.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())


def is_bfloat16_fast(facts: str | None = None) -> bool:
    """Return True if the CPU computes faster in bfloat16 than in float32; False if unknown.

    So it is with AMX, with AVX512-BF16 on AMD's processors, and with Arm's bfloat16.  On Intel's, AVX512-BF16 alone is slower than
    float32 (docs/log/2026-11.md, "Bfloat16 without AMX"); virtual machines often hide AMX.

    facts: text of /proc/cpuinfo, by default this machine's.
    """
    facts = cpu_facts() if facts is None else facts
    flags = cpu_flags(facts)
    return "amx_bf16" in flags or "bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in facts)


def processor_of(device: str) -> str:
    """Return the name of the processor that a step computes on.

    device: "cpu" or "cuda".
    """
    return cpu_name() if device == "cpu" else accelerator_name() or device


def cpu_name() -> str:
    """Return the CPU's name, or its architecture where nothing names it."""
    names = [line.partition(":")[2].strip() for line in cpu_facts().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator_name() -> str:
    """Return the first accelerator's name, from its driver; empty if there is none.

    Not through torch: the caller must not open the accelerator that its child process uses.
    """
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return names[0] if names else ""
