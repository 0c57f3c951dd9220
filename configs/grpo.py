"""Reinforcement learning with a verifiable reward (GRPO), from a model that begins to solve a task.

python -m lm.train --config=configs/grpo.py --workdir=runs/grpo --config.init_from=MODEL \
    --config.data.files='prompts.jsonl'
Records have a `prompt` and an `answer`, which exact_match compares. Hyper-parameters are those of
DAPO (Yu et al. 2025): token mean, clip 0.2 and 0.28, groups of 16, no divergence. Hardware: 8 GPUs
of 80 GB. Not run here.

:tiny sorts four letters with 0.4 M parameters, in minutes on a CPU. :start makes its first model by
a little instruct tuning on the same prompts:
python -m lm.train --config=configs/grpo.py:start --workdir=runs/start
python -m lm.train --config=configs/grpo.py:tiny --workdir=runs/grpo
Expected: docs/reinforcement.md. :start_t5 with :tiny_t5 and :start_mamba with :tiny_mamba are the
same with an encoder-decoder and a Mamba. Kin of GRPO are the variants dr_grpo, gspo and rloo of
:tiny.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section

EXACT = {"exact_match": {"weight": 1.0}}
HELD_OUT = "configs/examples/sorting_heldout.jsonl"


def get_config(variant=""):
    c = defaults()
    c.steps = 1000  # updates
    c.batch_size = 32  # prompts per update
    c.length = 2048  # tokens of a prompt and its answer
    c.task = tasks.defaults("grpo", rewards=EXACT)
    c.task.template = ""  # that of init_from
    c.task.group = 16  # answers to each prompt
    c.task.new_tokens = 1024
    c.task.minibatches = 16  # updates of a rollout of 512 prompts
    c.task.mean = "token"
    c.task.clip_high = 0.28
    c.task.rounds = 3  # groups with equal rewards are drawn again
    c.task.mask_truncated = True
    c.task.reference = False
    c.model.dtype = "bfloat16"  # of activations
    c.model.remat = "full"
    c.mesh.data = 1
    c.mesh.fsdp = -1  # parameters are sharded over all devices
    c.optimizer.learning_rate = 1e-6
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 20
    c.optimizer.weight_decay = 0.1
    c.checkpoint.every = 100
    common = small()
    tiny = common | {
        "init_from": "runs/start",
        "task": tasks.defaults(
            "grpo",
            rewards=EXACT,
            group=8,
            new_tokens=6,
            minibatches=2,
            kl=0.01,
        ),
        "steps": 100,
        "batch_size": 16,
        "optimizer.learning_rate": 1e-3,
        "log.every": 5,
        "evals": {"heldout": {"type": "rewards", "files": HELD_OUT, "every": 20}},
    }
    start = common | {
        "task": tasks.defaults(
            "instruct",
            template="plain",
            completion_field="answer",
            format="completion",
        ),
        "steps": 40,
        "batch_size": 16,
        "optimizer.learning_rate": 3e-3,
        "tokenizer": "bytes",
        **shape(),
    }
    return specialise(
        c,
        variant,
        tiny=tiny,
        start=start,
        tiny_t5=tiny,
        start_t5=start | _family("t5"),
        tiny_mamba=tiny,
        start_mamba=start | _family("mamba"),
        dr_grpo=tiny | {"task.scale": "none", "task.mean": "constant"},
        gspo=tiny | {"task.ratio": "sequence", "task.clip_low": 3e-4, "task.clip_high": 4e-4},
        rloo=tiny | {"task.baseline": "leave_one_out", "task.scale": "none"},
    )


def small():
    """What :start and :tiny have in common: a byte-level model on a CPU."""
    return {
        "data.files": "configs/examples/sorting.jsonl",
        "length": 16,
        "model.dtype": "float32",
        "model.remat": "none",
        "mesh.data": -1,
        "mesh.fsdp": 1,
        "optimizer.warmup": 10,
        "optimizer.weight_decay": 0.0,
        "checkpoint.every": 50,
    }


def shape():
    """Architecture of :start, 0.4 M parameters."""
    fields = dict(d_model=128, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384)
    fields |= {"max_length": 64}
    return {f"model.{name}": value for name, value in fields.items()}


def _family(name):
    """The same for another family, at a similar size."""
    model = preset(name, "tiny").replace(d_model=128, dropout=0.0)
    if name == "t5":
        model = model.replace(n_heads=4, n_kv_heads=4, head_dim=32, d_ff=256, max_length=64)
    else:
        model = model.replace(ssm_inner=256, ssm_dt_rank=8, n_layers=3)
    return {
        f"model.{field}": value
        for field, value in model_section(model).to_dict().items()
        if value is not None and not field.endswith(("token_id", "token_ids"))
    } | {"model.vocab_size": 0}
