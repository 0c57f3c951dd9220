"""A run of test_loop.py by two processes: python -m tests.lm.training.two_processes FOLDER

Ctrl-C reaches only the second process after step 5 of the first pair, and both processes at once
after step 8 of the second pair; the third pair completes the run, and generates with a hook that
looks on the host. Processes are forked, so that imports run once. Prints the exit codes of each
pair.
"""

import dataclasses
import os
import pathlib
import signal
import socket
import sys
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from lm.distributed import mesh
from lm.evaluation.evaluators.evaluator import Evaluator, Result
from lm.generation import Sample, generate
from lm.generation.hooks import Hook
from lm.training import loop, signals, trackers
from tests.lm.training import runs

EVAL = {"eval.every": 6}


@dataclasses.dataclass(frozen=True)
class Favourite(Hook):
    """Favours a token that the hidden state names."""

    taps = ("hidden",)

    def find(self, taps, slots):
        return {"token": taps["hidden"].argmax(axis=1) + 40 * (np.array([s.number for s in slots]))}

    def mix(self, logits, found):
        return logits + 4.0 * jax.nn.one_hot(found["token"], logits.shape[1])


def drawn(model, params) -> list[list[int]]:
    """Answers that are drawn with the hook."""
    options = dict(seed=3, stop_tokens=[], hooks=[Favourite()])
    return generate(model, params, [[5, 9, 2], [7]], 6, Sample(temperature=0.8), **options)


@dataclasses.dataclass(frozen=True)
class Drawn(Evaluator):
    """`drawn` by the model in training."""

    def prepare(self, tools):
        return lambda params, step: Result(samples=[("drawn", str(drawn(tools.model, params)))])


def pair(folder: pathlib.Path, step: int = 0, both: bool = False) -> list[int]:
    """Exit codes of two processes that train as `test_loop.stopped` does.

    step: the step after which Ctrl-C reaches one of them, or `both`; 0 = never.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {
            "JAX_NUM_PROCESSES": "2",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}",
        }
    children: list[int] = []
    for rank in (1, 0):
        children.insert(0, os.fork())
        if children[0] == 0:
            os.environ["JAX_PROCESS_ID"] = str(rank)
            if step:
                signals.Signals.stop = waiting(signals.Signals.stop, step)
            if step and rank == 0:
                sent = (children[1], os.getpid()) if both else (children[1],)
                trackers.Trackers.write = interrupting(trackers.Trackers.write, step, sent)
            mesh.initialize_distributed()
            c = runs.config(folder, **EVAL, compilation_cache=str(folder / "compiled"))
            c.eval.data.heldout = runs.text(folder, "held.txt")
            if not step:
                c.evals = ConfigDict({"drawn": {"type": "tests.lm.training.two_processes:Drawn"}})
            code = loop.train(c, folder / "two")
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def interrupting(write, step: int, processes: tuple[int, ...]):
    """Trackers.write that sends SIGINT to `processes` at `step`."""

    def sending(self, row):
        write(self, row)
        if row["step"] == step:
            for process in processes:
                os.kill(process, signal.SIGINT)

    return sending


def waiting(stop, step: int):
    """Signals.stop that waits after each step from `step` on, in both processes.

    JAX looks for a signal once a second, and then tells the other processes. Without the wait the
    few steps that are left can be over by then.
    """

    def slow(self, at):
        time.sleep(2.5 * (at >= step))
        return stop(self, at)

    return slow


if __name__ == "__main__":
    at = pathlib.Path(sys.argv[1])
    print(pair(at, step=5), pair(at, step=8, both=True), pair(at), flush=True)
