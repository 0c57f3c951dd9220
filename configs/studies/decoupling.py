"""Study: what pretraining, continual training and instruct tuning buy, and what a memory buys.

python -m launch.study --config=configs/studies/decoupling.py --samples-dir=DIR
DIR has wikitext-2/valid.txt, shakespeare/input.txt, blimp/*.jsonl and t0/*.jsonl.
A small decoder and a small T5 are trained on general text with sentences of facts, then on plays,
then on instructions, on pairs of right and wrong answers (DPO), and on their own answers (GRPO).
After each stage they are probed closed-book, with kNN-LM and with passages in context.
runs/decoupling/ledger.json has every figure; report.html and ledger.svg show what was gained and
forgotten, and at what cost. Times and results: docs/ledger.md.

:small is the decoder alone, with 0.2 M parameters: a few minutes. :tiny runs every stage of the
decoder for three steps, on files of this repository and a MiniLM.
"""

import ml_collections

from configs.decoupling import OPENED, PROBES
from lm.data.samples import directory

MODELS = {"decoder": ("Llama", ""), "t5": ("T5", "t5")}
STAGES = {  # name -> (file of its text, what it is)
    "pretrain": ("pretrain", "general text and facts"),
    "domain": ("domain", "plays"),
    "instruct": ("instruct", "instructions"),
    "preference": ("preference", "pairs of answers to them (DPO)"),
    "policy": ("preference", "its own answers to them (GRPO)"),
}
FILES = {
    "facts": "facts",
    "general": "general-test",
    "domain": "domain-test",
    "pairs": "pairs",
    "instruct": "instruct-test",
}
REAL = {
    "general": "{samples}/wikitext-2/valid.txt",
    "domain": "{samples}/shakespeare/input.txt",
    "instruct": "{samples}/t0/*.jsonl",
    "held-out": "glue_mrpc_*,social_i_qa_*,sciq_*",
    "pairs": "{samples}/blimp/*.jsonl",
}
SMALL = {
    "general": "docs/*.md",
    "domain": "lm/models/*.py",
    "instruct": "configs/examples/instruct.jsonl",
    "held-out": "*opposite*",
    "facts": "configs/examples/world.jsonl",
    "per-group": 2,
    "candidates": 3,
    "tests": 2,
    "memory-texts": 10,
    "most-sentences": 4,
}
SHRUNK = {  # of a run of the variant tiny
    "steps": 3,
    "batch_size": 8,
    "length": 64,
    "optimizer.warmup": 1,
    "model.d_model": 32,
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.n_kv_heads": 1,
    "model.d_ff": 64,
    "log.tensorboard": False,
}


LESS = {  # of a run of the variant small
    "model.d_model": 64,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 2,
    "model.d_ff": 192,
}
SIZES: dict[str, dict] = {"": {}, "small": LESS, "tiny": SHRUNK}


def get_config(variant=""):
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r} is unknown; this config has 'small' and 'tiny'")
    tiny = variant == "tiny"
    encoder = "{samples}/minilm" if tiny else str(directory() / "minilm")
    data = "{workdir}/data/"
    c = ml_collections.ConfigDict()
    c.name = "-".join(["decoupling", variant]).strip("-")
    if tiny:
        c.samples_dir = str(directory())  # --samples-dir overrides it
    names = (*(file for file, _ in STAGES.values()), *FILES.values(), "passages", "store", "dev")
    files = [f"{data}{name}.jsonl" for name in dict.fromkeys(names)]
    models = ["decoder"] if variant else [*MODELS]
    c.stages = (
        *([] if tiny else [_samples(encoder)]),
        dict(
            name="data",
            about="texts, facts by popularity, and probes",
            seconds=10,
            module="launch.decoupling.data",
            args={"output": data[:-1]} | (SMALL if tiny else REAL),
            outputs=files,
        ),
        dict(
            name="tokenizer",
            about="byte-pair tokens of all texts",
            seconds=10,
            module="lm.train_tokenizer",
            args={
                "input": f"{data}pretrain.jsonl,{data}domain.jsonl",
                "vocab_size": {"": 4096, "small": 2048, "tiny": 512}[variant],
                "output": "{workdir}/tokenizer",
            },
            inputs=files,
            outputs=["{workdir}/tokenizer"],
        ),
        dict(
            name="memory",
            about="passages of all facts, and the plays' training text",
            seconds=40,
            module="retrieval.build",
            args={
                "memory": "{workdir}/memory",
                "encoder": encoder,
                "input": f"{data}passages.jsonl",
                "replace": True,
            },
            inputs=files,
            outputs=["{workdir}/memory"],
        ),
        *(stage for name in models for stage in _trained(name, variant)),
        dict(
            name="report",
            about="the ledger: table, heat map, costs",
            seconds=3,
            module="launch.decoupling.report",
            args=["--workdir={workdir}", "--stages", *STAGES, "--models"]
            + [f"{name}={MODELS[name][0]}" for name in models],
            inputs=[f"{{workdir}}/{name}/{s}/metrics.jsonl" for name in models for s in STAGES],
            outputs=["{workdir}/ledger.json", "{workdir}/report.html", "{workdir}/ledger.svg"],
        ),
    )
    return c


def _samples(encoder):
    return dict(
        name="samples",
        about="an encoder, cities, countries and elements, checked",
        seconds=15,
        module="lm.data.samples",
        args=["minilm", "geonames", "elements"],
        outputs=[encoder],
    )


def _trained(model: str, size: str):
    """The stages of a model, each from the one before."""
    before, family = "", MODELS[model][1]
    for stage, (file, about) in STAGES.items():
        run, text = f"{{workdir}}/{model}/{stage}", f"{{workdir}}/data/{file}.jsonl"
        of_stage = "" if stage == "pretrain" else stage
        variant = "-".join(part for part in (family, of_stage) if part)
        args: dict = {
            "config": "configs/decoupling.py" + (f":{variant}" if variant else ""),
            "workdir": run,
            "config.data.files": text,
        }
        args |= (
            {"config.init_from": before} if before else {"config.tokenizer": "{workdir}/tokenizer"}
        )
        args |= _probes(model)
        args |= {f"config.{name}": value for name, value in SIZES[size].items()}
        if size == "small":
            args["config.steps"] = 400 if stage == "pretrain" else 100
        yield dict(
            name=f"{model}-{stage}",
            about=f"{MODELS[model][0]} on {about}, and the probes",
            seconds=300 if stage == "pretrain" else 180,
            module="lm.train",
            args=args,
            inputs=[text, "{workdir}/tokenizer", "{workdir}/memory", *([before] if before else [])],
            outputs=[run, run + "/metrics.jsonl"],
        )
        before = run


def _probes(model: str) -> dict:
    """Flags of the probes' files and of their conditions."""
    data, found = "{workdir}/data/", {}
    for probe in PROBES:
        for condition in OPENED:
            at = f"config.evals.{probe}_{condition}"
            found[at + ".files"] = f"{data}{FILES[probe]}.jsonl"
        knn = f"config.evals.{probe}_knn.condition"
        found[knn + ".store"] = data + "store.jsonl"
        found[knn + ".dev"] = data + "dev.jsonl"
        found[knn + ".folder"] = f"{{workdir}}/{model}/datastores"
        found[f"config.evals.{probe}_passages.condition.memory"] = "{workdir}/memory"
    return found
