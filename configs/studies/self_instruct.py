"""Study: does data that a model made itself teach it more than the seeds alone (Self-Instruct)?

python -m launch.study --config=configs/studies/self_instruct.py --samples-dir=DIR
DIR has self-instruct/seed_tasks.jsonl and natural-instructions/tasks/*.json. SmolLM2-135M-Instruct
makes tasks from the seeds until it has 110 instructions; adapters are trained on the seeds alone,
and on both, for as many steps; each answers tasks of Super-NaturalInstructions that neither has
seen, as does the model itself. The last lines are the three tables of scores. About 50 minutes on
one CPU core; docs/self_instruct.md has the result.

Variant tiny: models of bytes that were trained for a few steps take the same stages, on a CPU; no
task is made.
"""

import ml_collections

from lm.data.samples import directory

MODEL = str(directory() / "smollm2-135m-instruct.gguf")
SEEDS = "{samples}/self-instruct/seed_tasks.jsonl"
MADE = "{workdir}/made"
HELD_OUT = "{samples}/natural-instructions/tasks/task13*.json"

SHORT = {  # prompts and answers that a small model can use, in less time
    "config.instructions": 110,
    "config.examples": 4,
    "config.instance_tokens": 96,
    "config.context": 768,
}


def get_config(variant=""):
    if variant not in ("", "tiny"):
        raise ValueError(f"variant {variant!r} is unknown; this config has 'tiny'")
    tiny = bool(variant)
    model = "{workdir}/model" if tiny else MODEL
    seeds = "configs/examples/seed_tasks.jsonl" if tiny else SEEDS
    held_out = "configs/examples/instruct.jsonl" if tiny else HELD_OUT
    c = ml_collections.ConfigDict()
    c.name = "self-instruct-tiny" if tiny else "self-instruct"
    c.samples_dir = str(directory())
    c.stages = (
        _model(tiny, model),
        _stage(
            "generate",
            "lm.self_instruct",
            {
                "config": "configs/self_instruct/generate.py" + (":tiny" if tiny else ""),
                "workdir": MADE,
                "config.seeds": seeds,
                "config.generator": model,
            }
            | ({} if tiny else SHORT),
            1800,
            MADE,
            f"{MADE}/tasks.jsonl",
            f"{MADE}/report.html",
        ),
        *_tuned("seeds", seeds, model, tiny),
        *_tuned("both", f"{seeds},{MADE}/tasks.jsonl", model, tiny),
        *(
            _stage(
                f"{name}-scores",
                "lm.evaluate",
                {
                    "model": path,
                    "examples": held_out,
                    "max-examples": 8 if tiny else 64,
                    "max-new-tokens": 8 if tiny else 32,
                    "template": "plain" if tiny else "chatml",
                    "metrics": "rouge_l,exact_match",
                    "json": f"{{workdir}}/{name}.json",
                },
                300,
                f"{{workdir}}/{name}.json",
            )
            for name, path in (
                ("model", model),
                ("seeds", "{workdir}/seeds"),
                ("both", "{workdir}/both"),
            )
        ),
    )
    return c


def _stage(name, module, args, seconds, *outputs):
    return dict(name=name, module=module, args=args, seconds=seconds, outputs=list(outputs))


def _model(tiny, model):
    if not tiny:
        return _stage("sample", "lm.data.samples", ["smollm2"], 15, model)
    args = {"config": "configs/tiny.py:gpt2", "workdir": model, "config.steps": 4}
    args |= {"config.model.max_length": 512, "config.samples.prompts": "()"}
    return _stage("model", "lm.train", args, 30, model)


def _tuned(name, files, model, tiny):
    args = {
        "config": "configs/lora.py",
        "workdir": f"{{workdir}}/{name}",
        "config.init_from": model,
        "config.data.files": files,
        "config.task.template": "plain" if tiny else "chatml",
        "config.task.max_long": 0.5,
        "config.length": 256,
        "config.batch_size": 8 if tiny else 4,
        "config.steps": 4 if tiny else 40,
        "config.optimizer.warmup": 2 if tiny else 4,
    }
    return (_stage(name, "lm.train", args, 300, f"{{workdir}}/{name}"),)
