"""Program that runs llama.cpp's server in a process started by `llama_server.py`.

It writes one JSON line, {"url": ...} or {"error": ...}, to standard output, serves until standard input closes (so it
cannot outlive its parent), and exits without waiting for requests in flight.
"""

import json
import os
import signal
import sys

ERRORS_ONLY = 1


def main() -> None:
    """Serve the model described by the first argument (JSON) until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import xllamacpp

    settings = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["context"] * settings["parallel"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.verbosity = ERRORS_ONLY
    params.cont_batching = True
    params.warmup = True
    params.ui = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.chat_template = settings["template"]
    params.cors_origins = "http://127.0.0.1"
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        sys.exit(1)
    sys.stdout.write(json.dumps({"url": server.listening_address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
