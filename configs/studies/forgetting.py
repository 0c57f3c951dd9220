"""Study: what instruct tuning teaches and forgets, with methods against forgetting.

Models: SmolLM2-135M-Instruct and a small T5.

python -m launch.study --config=configs/studies/forgetting.py --samples-dir=DIR
DIR has t0/*.jsonl (prompt, completion), natural-instructions/tasks/*.json and wikitext-2/valid.txt.
Both models learn the same tasks, once plainly and once with each method; whole tasks are held out.
runs/forgetting/report.md has ROUGE-L on held-out tasks, beside copying the input or a
demonstration, and the perplexity of text that no run reads. An hour and a half on one CPU core.
"""

import ml_collections

from configs.forgetting import HELD_OUT
from lm.data.samples import directory

TASKS = "{samples}/t0,{samples}/natural-instructions/tasks"
METHODS = (
    "none",
    "replay",
    "kl",
    "l2_sp",
    "ewc",
    "lora",
)  # methods that train; wise_ft mixes the weights of base and none
MODELS: dict[str, dict] = {
    "smollm2": {
        "about": "SmolLM2-135M-Instruct",
        "base": str(directory() / "smollm2-135m-instruct.gguf"),
        "prefix": "",
        "template": "chatml",
        "text": {"length": 256, "max-rows": 48},
    },
    "t5": {
        "about": "T5 of 2 M parameters",
        "base": "{workdir}/t5/text",
        "prefix": "t5-",
        "template": "plain",
        "text": {"length": 128, "objective": "span_corruption"},
    },
}

SAMPLE = dict(
    name="sample",
    about="the model, checked",
    seconds=15,
    module="lm.data.samples",
    args=["smollm2"],
    outputs=[MODELS["smollm2"]["base"]],
)


def get_config(variant=""):
    if variant not in ("", *MODELS):
        raise ValueError(
            f"variant {variant!r} is unknown; this config has {', '.join(MODELS)}: one of the "
            "models alone"
        )
    models = [variant] if variant else list(MODELS)
    c = ml_collections.ConfigDict()
    c.name = "-".join(["forgetting", variant]).strip("-")
    c.stages = (
        *([SAMPLE] if "smollm2" in models else []),
        dict(
            name="texts",
            about="WikiText-2 in two parts",
            seconds=1,
            module="launch.forgetting.texts",
            args={"input": "{samples}/wikitext-2/valid.txt", "output": "{workdir}/texts"},
            inputs=["{samples}/wikitext-2/valid.txt"],
            outputs=["{workdir}/texts/old.txt", "{workdir}/texts/heldout.txt"],
        ),
        *(stage for name in models for stage in stages(name)),
        dict(
            name="report",
            about="the table and the picture",
            seconds=2,
            module="launch.forgetting.report",
            args=[
                "--workdir={workdir}",
                "--models",
                *(f"{name}={MODELS[name]['about']}" for name in models),
            ],
            inputs=[
                measured(name, run, what)
                for name in models
                for run in ("base", *METHODS, "wise_ft")
                for what in ("tasks", "text")
            ],
            outputs=["{workdir}/report.md", "{workdir}/forgetting.svg"],
        ),
    )
    return c


def measured(name: str, run: str, what: str) -> str:
    return f"{{workdir}}/{name}/{run}-{what}.json"


def stages(name: str):
    """All stages of one model: base, runs, mix, and two evaluations of each."""
    model, folder = MODELS[name], f"{{workdir}}/{name}"
    base, config = model["base"], "configs/forgetting.py:" + model["prefix"]
    old = "{workdir}/texts/old.txt"
    if name == "t5":
        yield dict(
            name="t5-tokenizer",
            about="4,096 pieces of the old text and of prompts",
            seconds=10,
            module="lm.train_tokenizer",
            args={
                "model": "unigram",
                "sentinels": 64,
                "vocab_size": 4096,
                "input": old + ",{samples}/t0/[gkpqrw]*.jsonl",
                "field": "prompt",
                "output": folder + "/tokenizer",
            },
            inputs=[old],
            outputs=[folder + "/tokenizer"],
        )
        yield dict(
            name="t5-text",
            about="a small T5 from scratch on the old text",
            seconds=240,
            module="lm.train",
            args={
                "config": config + "text",
                "workdir": base,
                "config.tokenizer": folder + "/tokenizer",
                "config.data.files": old,
            },
            inputs=[old, folder + "/tokenizer"],
            outputs=[base, base + "/metrics.jsonl"],
        )
    yield from measure(name, "base", base, [base])
    fisher = folder + "/fisher/fisher.safetensors"
    for method in METHODS:
        args = {
            "config": config + ("t5" if name == "t5" else ""),
            "workdir": f"{folder}/{method}",
            "config.init_from": base,
        }
        args |= {"config.data.files": TASKS}
        inputs = [base, old]
        if method != "none":
            args["config"] = config + method
        if method == "replay":
            del args["config.data.files"]
            args |= {"config.data.mixture.new.files": TASKS, "config.data.mixture.old.files": old}
        if method == "ewc":
            yield dict(
                name=f"{name}-fisher",
                about="what the weights matter to",
                seconds=120,
                module="lm.fisher",
                args={
                    "config": config + "fisher",
                    "workdir": folder + "/fisher",
                    "config.init_from": base,
                    "config.data.files": old,
                },
                inputs=[base, old],
                outputs=[fisher],
            )
            args["config.adaptation.ewc.fisher"] = fisher
            inputs.append(fisher)
        run = f"{folder}/{method}"
        yield dict(
            name=f"{name}-{method}",
            about=f"{model['about']} learns the tasks"
            + ("" if method == "none" else f", with {method}"),
            seconds=120 if name == "t5" else 400,
            module="lm.train",
            args=args,
            inputs=inputs,
            outputs=[run, run + "/metrics.jsonl"],
        )
        yield from measure(name, method, run, [run + "/metrics.jsonl"])
    mixed = folder + "/wise_ft"
    yield dict(
        name=f"{name}-wise_ft",
        about="half base, half tuned",
        seconds=10,
        module="lm.interpolate",
        args={"base": base, "tuned": folder + "/none", "alphas": 0.5, "output": mixed},
        inputs=[folder + "/none/metrics.jsonl"],
        outputs=[mixed],
    )
    yield from measure(name, "wise_ft", mixed, [mixed])


def measure(name: str, run: str, path: str, inputs: list[str]):
    model = MODELS[name]
    tasks, text = (measured(name, run, what) for what in ("tasks", "text"))
    untaught = {} if run in METHODS else {"template": model["template"]}
    yield dict(
        name=f"{name}-{run}-tasks",
        about="answers to tasks held out",
        seconds=120,
        module="lm.evaluate",
        args={
            "model": path,
            "examples": TASKS,
            "hold-out": HELD_OUT,
            "cap": 2,
            "max-new-tokens": 24,
            "metrics": "rouge_l,exact_match",
            "baselines": True,
            "batch-size": 16,
            "json": tasks,
        }
        | untaught,
        inputs=inputs,
        outputs=[tasks],
    )
    yield dict(
        name=f"{name}-{run}-text",
        about="perplexity of text held out",
        seconds=60,
        module="lm.evaluate",
        args={"model": path, "data": "{workdir}/texts/heldout.txt", "json": text, **model["text"]},
        inputs=inputs + ["{workdir}/texts/heldout.txt"],
        outputs=[text],
    )
