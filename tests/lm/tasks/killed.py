"""A run of a policy or of preference pairs that kills itself in a phase: SIGKILL, nothing saved.

python -m tests.lm.tasks.killed FOLDER TASK FAMILY PHASE
"""

import os
import pathlib
import signal
import sys
import time

import jax

from lm import tasks
from tests.lm.tasks import policies, test_preference

STEPS, SAVED = 6, 2  # a rollout serves four steps, so the second is drawn before step 5


def config(folder, task: str, family: str):
    changes = {"steps": STEPS, "checkpoint.every": SAVED, "mesh.data": 2, "mesh.fsdp": 4}
    if task == "dpo":
        pairs = test_preference.written(folder)
        changes |= {"data.files": pairs, "length": 128, "model.max_length": 128}
        changes |= {"eval.every": 3, "eval.data.heldout": pairs}
        c = policies.config(folder, family=family, **changes)
        c.task = tasks.defaults("dpo", template="tulu")
        return c
    held = {"type": "rewards", "files": policies.prompts(folder), "every": 3}
    fields = {"minibatches": 2, "epochs": 2, "top_p": 0.9}
    return policies.config(folder, family=family, fields=fields, evals={"held": held}, **changes)


def places():
    """Phase -> (owner and name of a function, at which call the process is killed)."""
    from lm.tasks.rollouts import Rollouts
    from lm.training import checkpoints
    from lm.training.evaluations import Evaluations
    from lm.training.loop import _Loop

    return {
        "drawing": (Rollouts, "_arrays", 2),  # the answers are drawn, and not yet scored
        "rewarding": (policies, "vowels", 64 + 12 + 5),  # the first rollout, and an evaluation
        "comparing": (Rollouts, "_log_probs", 3),
        "updating": (_Loop, "_record", 4),
        "evaluating": (Evaluations, "after", 3),
        "saving": (checkpoints, "_Digesting", 2),  # the write has begun
        "digesting": (checkpoints.digests, "write", 2),  # it has ended, without digests
    }


def kill(workdir: pathlib.Path) -> None:
    """End this process at once, as soon as its first checkpoint is complete."""
    first = workdir / "checkpoints" / str(SAVED) / "commit_success.txt"
    while not first.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in(phase: str, workdir: pathlib.Path) -> None:
    if phase == "decoding":
        return kill_while_decoding(workdir)
    owner, name, number = places()[phase]
    function, calls = getattr(owner, name), []

    def killing(*args, **options):
        calls.append(name)
        if len(calls) == number:
            kill(workdir)
        return function(*args, **options)

    setattr(owner, name, killing)


def kill_while_decoding(workdir: pathlib.Path) -> None:
    """Kill inside the engine's compiled loop, at the third of six tokens of the second rollout."""
    from lm.generation import slots
    from lm.tasks.rollouts import Rollouts

    draw, forward, rollouts = Rollouts._draw, slots.forward, []

    def killing(plan, params, state):
        jax.debug.callback(lambda steps: kill(workdir) if steps == 2 else None, state["steps"])
        return forward(plan, params, state)

    def drawing(self, params):
        rollouts.append(self)
        if len(rollouts) == 2:  # the first is compiled as in a run that nothing disturbs
            slots.forward = killing
            slots.advance.clear_cache()
        return draw(self, params)

    Rollouts._draw = drawing


if __name__ == "__main__":
    from lm.training import loop

    folder, task, family, phase = pathlib.Path(sys.argv[1]), *sys.argv[2:]
    kill_in(phase, folder / phase)
    loop.train(config(folder, task, family), folder / phase)
