"""A stage of the study of what each stage of training buys (configs/studies/decoupling.py).

python -m lm.train --config=configs/decoupling.py --workdir=runs/pretrain \
    --config.tokenizer=runs/tokenizer --config.data.files=runs/data/pretrain.jsonl \
    --config.evals.facts_closed.files=runs/data/facts.jsonl ...
A small Llama on general text and sentences of facts, then probed closed-book, with kNN-LM, and
with passages. Hardware: 2 CPU cores, minutes. Results: docs/ledger.md.

Variants, from the run of init_from:
    domain      on text of a second domain
    instruct    on instructions
    preference  on pairs of answers to them (DPO)
    policy      on its own answers to them, of which the right ones are rewarded (GRPO)
t5, t5-domain, ...: the same with a small encoder-decoder, which writes the second part of each text
after reading the first (prefix language modelling, Raffel et al. 2020, section 3.2.3).
"""

from ml_collections import ConfigDict

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section

PROBES = {  # of the ledger: name -> evaluator
    "facts": {"type": "facts"},
    "general": {"type": "bits"},
    "domain": {"type": "bits"},
    "pairs": {"type": "pairs"},
    "instruct": {"type": "completions", "max_new_tokens": 16},
}
OPENED = {  # condition -> its section; the study sets the paths
    "closed": {},
    "knn": {
        "type": "retrieval.doors.conditions:Neighbours",
        "store": "",
        "dev": "",
        "folder": "",
        "adaptive": True,
        "k": 32,
    },
    "passages": {
        "type": "retrieval.doors.conditions:Passages",
        "memory": "",
        "mode": "lexical",
        "k": 1,
    },
}
ALIGNED = {  # stage -> (task, its fields)
    "preference": ("dpo", {}),
    "policy": (
        "grpo",
        {"rewards": {"exact_match": {"field": "chosen"}}, "group": 8, "new_tokens": 16},
    ),
}


def get_config(variant=""):
    family, _, stage = variant.rpartition("-")
    t5 = "t5" in (family, stage)
    c = defaults()
    c.steps = 250  # updates
    c.batch_size = 16  # rows per update
    c.length = 128  # tokens per row
    if t5:
        c.task = tasks.defaults("instruct")
    if stage == "t5":  # later stages have the model of init_from
        model = model_section(preset("t5", "tiny")).to_dict() | {
            "vocab_size": 0,
            "d_model": 128,
            "n_layers": 3,
            "encoder_layers": 3,
            "n_heads": 4,
            "n_kv_heads": 4,
            "head_dim": 32,
            "d_ff": 384,
            "max_length": 512,
            "tie_embeddings": False,
            "logit_scale": 1.0,
            "initializer_range": 0.09,
        }
        c.model.update({name: value for name, value in model.items() if value is not None})
    if not stage:
        c.model.update(
            d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384, max_length=512
        )  # a small Llama
    taught = {"task": tasks.defaults("instruct")} if stage == "instruct" and not t5 else {}
    if stage in ALIGNED:
        task, fields = ALIGNED[stage]
        taught = {"task": tasks.defaults(task, **fields)}
    c.optimizer.learning_rate = 4e-3 if stage in ("", "t5") else 2e-3  # high: the model is small
    c.optimizer.warmup = 20
    c.checkpoint.every = 10_000  # after the last step only
    c.checkpoint.keep = 1
    c.eval.every = 0
    c.evals = ConfigDict(
        {
            f"{name}_{condition}": {**section, "files": "", "every": 0, "condition": {**opened}}
            for name, section in PROBES.items()
            for condition, opened in OPENED.items()
        }
    )
    c = specialise(
        c,
        stage,
        t5={},
        domain={"steps": 80},
        instruct={"steps": 80} | taught,
        preference={"steps": 80, "length": 256, "optimizer.learning_rate": 2e-4} | taught,
        policy={"steps": 40, "optimizer.learning_rate": 2e-4} | taught,
    )
    if t5 or stage in ("instruct", *ALIGNED):
        with c.unlocked():
            c.task.template = "plain"
            c.task.max_long = 0.5  # share of examples that may be too long for a row
            if stage != "policy":
                c.task.target_length = 128 if t5 else 0
    return c
