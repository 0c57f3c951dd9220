"""Instruct tuning on many tasks, with methods against forgetting (configs/studies/forgetting.py).

python -m lm.train --config=configs/forgetting.py --workdir=runs/tuned \
    --config.data.files='t0,natural-instructions/tasks'
Model: SmolLM2-135M-Instruct (python -m lm.data.samples smollm2). Hardware: 2 CPU cores, minutes.
Results: docs/forgetting.md.

Variants: replay, kl, l2_sp, ewc, lora: the same run with this method; fisher: the config of
lm.fisher for ewc. t5-METHOD is the same for a small T5, which t5-text first trains on text.
"""

from ml_collections import ConfigDict

from configs.defaults import defaults, specialise
from lm import tasks
from lm.data.samples import directory
from lm.families import preset
from lm.training.settings import model_section

HELD_OUT = "ag_news_*,common_gen_*,sciq_*,social_i_qa_*,task13??_*"  # data sets of T0, a task range


def get_config(variant=""):
    family, _, method = variant.rpartition("-")
    if family not in ("", "t5"):
        raise ValueError(
            f"variant {variant!r} is unknown; this config has t5, and the variants of its "
            "docstring, also as t5-..."
        )
    t5 = family == "t5" or method == "t5"
    c = defaults()
    c.init_from = (
        "" if t5 else str(directory() / "smollm2-135m-instruct.gguf")
    )  # for T5, set it to a run of t5-text
    c.task = tasks.defaults("instruct")  # loss on the answers and their end token only
    c.task.format = "auto"  # T0's prompts and completions, tasks of Super-NaturalInstructions
    c.task.template = "plain" if t5 else "chatml"
    c.task.hold_out = HELD_OUT
    c.task.cap = 40  # records per task
    c.task.max_long = (
        0.5  # share of examples that may be too long for a row; they are dropped and counted
    )
    c.task.target_length = 64 if t5 else 0
    c.length = 256  # tokens per row, with packed examples
    c.batch_size = 16 if t5 else 4  # rows per update
    c.steps = 250 if t5 else 28  # updates
    c.optimizer.learning_rate = 3e-3 if t5 else 5e-4  # high enough for a plain run to forget
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 4
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.checkpoint.keep = 1
    c.eval.every = 0
    # settings of training on text alone
    text = {"task": tasks.defaults("span_corruption" if t5 else "next_token")}
    new, old = (
        {"files": "", "weight": 0.9},
        {"files": "", "weight": 0.1, "task": text["task"]},
    )
    variants = {
        "t5": {},
        "replay": {
            "data.mixture": ConfigDict({"new": new, "old": old})
        },  # a tenth of the rows is text
        "kl": {"adaptation.kl.strength": 0.5},
        "l2_sp": {"adaptation.l2_sp": 0.003},
        "ewc": {
            "adaptation.ewc.strength": 1.0
        },  # set adaptation.ewc.fisher to the file of lm.fisher
        "fisher": text | {"steps": 12},
        "lora": {"adaptation.lora.rank": 16, "optimizer.learning_rate": 1e-2 if t5 else 1e-3},
    }
    if t5:
        model = model_section(preset("t5", "tiny")).to_dict() | {
            "vocab_size": 0,
            "d_model": 128,
            "d_ff": 512,
            "head_dim": 32,
            "tie_embeddings": False,
            "logit_scale": 1.0,
            "initializer_range": 0.09,
        }
        variants["text"] = (
            text
            | {f"model.{k}": v for k, v in model.items() if v is not None}
            | {"steps": 600, "optimizer.warmup": 20}
        )
    return specialise(c, method, **variants)
