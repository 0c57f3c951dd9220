"""Reinforcement learning with an open book: answer from a memory's passages, and cite them (GRPO).

python -m lm.train --config=configs/memory/cite.py --workdir=runs/cite \
    --config.task.memory=runs/towns --config.data.files=questions.jsonl
Questions are JSON lines with `question` and `answer`, a text or a list of texts. An answer is
rewarded by 1 if it is right without its citations, and by half the share of the passages cited that
contain it. Hardware: a GPU. Not run here.

:tiny is four updates from --config.init_from, on a CPU; it shows that every part runs.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from retrieval.tasks import cited


def get_config(variant=""):
    c = defaults()
    c.init_from = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.task = tasks.defaults(
        "retrieval.tasks.cited:CitedGRPO",
        memory="runs/towns",
        rewards=cited.REWARDS,
        template="jinja",  # the model's own chat template, whose stop token ends answers
        k=4,  # passages of a question
        group=8,  # answers to each question
        new_tokens=32,
        minibatches=2,  # updates of a rollout of 32 questions
        kl=0.04,
    )
    c.length = 640  # tokens of a prompt with its passages, and of the answer
    c.steps = 200  # updates
    c.batch_size = 16  # questions per update
    c.adaptation.lora.rank = 16  # the reference is the frozen base
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 10
    c.optimizer.weight_decay = 0.0
    c.data.files = "questions.jsonl"
    c.checkpoint.every = 50
    tiny = {
        "steps": 4,
        "batch_size": 8,
        "length": 480,
        "task.template": "plain",
        "task.k": 2,
        "task.group": 4,
        "task.new_tokens": 8,
        "adaptation.lora.rank": 0,
        "checkpoint.every": 4,
        "log.every": 1,
    }
    return specialise(c, variant, tiny=tiny)
