"""Environment variables of every process that runs a step."""

from collections.abc import Mapping

SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SPIN_COUNT = 1000
"""Rounds that an OpenMP thread spins at a barrier before it sleeps.  GNU's default of up to 30 billion makes training several times
slower while another program is busy, because the spinning thread occupies the core that the slower thread needs."""


def step_variables(threads: int, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that libraries read on import, except those in `given`.

    threads: CPU threads of the process.
    given: the present environment; the user's own values win.
    Libraries stay quiet and offline, use at most `threads`, and give up their cores while they wait.
    """
    found = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": given.get("HF_HUB_OFFLINE", "1"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(threads),
    }
    if not any(name in given for name in SPIN_VARIABLES):
        found["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    return {name: value for name, value in found.items() if name not in given}
