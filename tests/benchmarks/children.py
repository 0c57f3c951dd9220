"""Processes of a benchmark: pinned to one core, with one thread, and told when to work."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.peers import Missing
from tests.benchmarks.rows import OURS, ROWS, Pair

THREADS = {  # every library that has threads of its own gets one
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
RATE_SIZE = 1024  # rows and columns of the matrices whose product is timed
COPIED = 2**28  # bytes


class ChildFailed(RuntimeError):
    """A side ended with an error. The message holds the end of what it printed."""


class Child:
    """One side of a row, in a process of its own."""

    def __init__(self, row: str, side: str, quick: bool):
        self._name = f"{row}, {side}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by `close`
        command = [sys.executable, "-m", "tests.benchmarks.run", f"--side={side}", f"--only={row}"]
        env = {**os.environ, **THREADS, "JAX_PLATFORMS": "cpu"}
        if not quick:
            env["JAX_ENABLE_COMPILATION_CACHE"] = "0"
        self._process = subprocess.Popen(
            command + ["--quick"] * quick,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )

    def ready(self) -> dict:
        """Wait until it is set up, and return what it says of itself."""
        return self._read()

    def work(self) -> dict:
        """Let it work once, and return what it measured."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _read(self) -> dict:
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        raise ChildFailed(
            f"{self._name} ended ({self._process.returncode}):\n{self._log.read()[-1500:]}"
        )


def serve(name: str, side: str, quick: bool) -> None:
    """Be a side: set up, warm up, and work whenever a line comes on standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    row = ROWS[name]

    def say(**found) -> None:
        print(json.dumps(found), file=out, flush=True)

    if not isinstance(row, Pair):
        say()
        sys.stdin.readline()
        say(**row.run(quick))
        return
    sizes = row.at(quick)
    if "torch" in row.sides[side].__name__:
        import torch

        torch.set_num_threads(1)
    try:
        run = row.sides[side](sizes)
    except Missing as why:
        say(missing=str(why))
        return
    run()
    say(**({"rates": rates(sizes.activations)} if side == OURS else {}))
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = run() or {}
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(cpu=cpu, wall=wall, peak_mb=round(peak), **found)


def rates(dtype: str) -> dict[str, float]:
    """What the core does: GFLOP/s of a matrix product in `dtype`, GB/s of a copy; best of five."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    x = jnp.ones((RATE_SIZE, RATE_SIZE), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    source = np.ones(COPIED // 8)
    target = np.zeros_like(source)

    def best(work) -> float:
        work()
        spent = []
        for _ in range(5):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        return min(spent)

    multiplied = best(lambda: product(x).block_until_ready())
    return {
        "matmul_gflops": round(2e-9 * RATE_SIZE**3 / multiplied, 1),
        "copy_gb_per_s": round(2e-9 * COPIED / best(lambda: np.copyto(target, source)), 1),
    }
