"""Reinforcement learning with a critic (PPO), from a model that begins to solve a task.

python -m lm.train --config=configs/ppo.py --workdir=runs/ppo --config.init_from=MODEL \
    --config.data.files='prompts.jsonl'
Records have a `prompt` and an `answer`, which exact_match compares. Ratios and values are clipped
at 0.2, and lambda is 0.95. Hardware: 8 GPUs of 80 GB. Not run here.

:tiny sorts four letters with 0.4 M parameters, and as many of the critic, from the model of
configs/grpo.py:start:
python -m lm.train --config=configs/grpo.py:start --workdir=runs/start
python -m lm.train --config=configs/ppo.py:tiny --workdir=runs/ppo
:bandit learns from nothing to answer with one of 26 letters. :ptx is :tiny with text beside it,
against forgetting (PPO-ptx). Expected: docs/reinforcement.md.
"""

from configs import grpo
from configs.defaults import defaults, specialise
from lm import tasks

LETTER = {"format": {"pattern": "[a-z]"}}


def get_config(variant=""):
    c = defaults()
    c.steps = 2000  # updates
    c.batch_size = 64  # prompts per update
    c.length = 1024  # tokens of a prompt and its answer
    c.task = tasks.defaults("ppo", rewards=grpo.EXACT)
    c.task.template = ""  # that of init_from
    c.task.new_tokens = 512
    c.task.minibatches = 8  # updates of a rollout of 512 prompts
    c.task.kl = 0.05
    c.task.unended = 1.0  # subtracted from the reward of an answer that did not end
    c.model.dtype = "bfloat16"  # of activations
    c.model.remat = "full"
    c.mesh.data = 1
    c.mesh.fsdp = -1  # parameters are sharded over all devices
    c.optimizer.learning_rate = 1e-6
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 20
    # a new critic learns faster than the policy
    c.optimizer.rates = (("^models/critic/", 5.0), *c.optimizer.rates)
    c.checkpoint.every = 100
    learning = {"group": 4, "minibatches": 2, "epochs": 2}
    tiny = grpo.small() | {
        "init_from": "runs/start",
        "task": tasks.defaults("ppo", rewards=grpo.EXACT, new_tokens=6, kl=0.01, **learning),
        "steps": 200,
        "batch_size": 16,
        "optimizer.learning_rate": 3e-4,
        "log.every": 5,
        "evals": {"heldout": {"type": "rewards", "files": grpo.HELD_OUT, "every": 40}},
    }
    text = {
        "task": tasks.defaults("next_token", field="answer"),
        "files": "configs/examples/sorting.jsonl",
        "batch_size": 8,
        "coefficient": 0.1,
    }
    drawn = {"type": "rewards", "files": grpo.HELD_OUT, "every": 20, "greedy": False}
    bandit = {
        "init_from": "",
        "tokenizer": "bytes",
        "task": tasks.defaults("ppo", rewards=LETTER, new_tokens=1, **learning),
        "steps": 80,
        "optimizer.learning_rate": 1e-3,
        "evals": {"heldout": drawn},
    }
    return specialise(
        c,
        variant,
        tiny=tiny,
        ptx=tiny | {"further_tasks": {"text": text}},
        bandit=tiny | grpo.shape() | bandit,
    )
