"""Jobs of a comparison: what each checkout trains, builds and evaluates.

Jobs use command lines and config fields only. When a config field is renamed, rename it here too.
Keep the old name beside it as long as an old checkout is compared.
"""

import dataclasses
import fnmatch
import pathlib

STEPS = 8
COMMON = {
    "steps": STEPS,
    "log.every": 1,
    "log.tensorboard": False,
    "eval.every": STEPS // 2,
    "checkpoint.every": STEPS,
}
MIXTURE = "mixture.py"  # a config file in this folder; all others belong to the checkout
BYTES_16 = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Job:
    """One line of the table.

    kind: the function in worker.py that does the job.
    config, variant: the config file of a run and its variant.
    changes: config field -> value, in addition to COMMON.
    start: the job whose run is init_from.
    first: steps of a first call, which a second call continues.
    program: compare the StableHLO of the training step too.
    needs: jobs whose results this job reads.
    process: jobs with the same value share a process, in the listed order.
    of_other: the other checkout's job whose files this job reads, in this checkout. Its result must
    equal that job's.
    """

    name: str
    kind: str = "train"
    variant: str = ""
    changes: dict = dataclasses.field(default_factory=dict)
    config: str = "configs/smoke.py"
    start: str = ""
    first: int = 0
    program: bool = False
    needs: tuple[str, ...] = ()
    process: str = "1"
    of_other: str = ""


EXAMPLES = "configs/examples"
# smoke objective -> files to evaluate on; "LICENSE" for the others
HELD_OUT = {
    "instruct": f"{EXAMPLES}/instruct.jsonl",
    "classification": f"{EXAMPLES}/topics.jsonl",
    "token_classification": f"{EXAMPLES}/names.jsonl",
    "question_answering": f"{EXAMPLES}/questions.json",
    "contrastive": f"{EXAMPLES}/pairs.jsonl",
}


def smoke(
    variant: str, suffix: str = "", process: str = "1", changes: dict | None = None, **fields
) -> Job:
    objective, _, family = variant.partition(",")
    held_out = {"eval.data.heldout": HELD_OUT.get(objective, "LICENSE")}
    name = f"{objective}-{family}{suffix and f'-{suffix}'}"
    return Job(name, variant=variant, changes=held_out | (changes or {}), process=process, **fields)


SAMPLES = {"samples.prompts": "('Licensed under',)", "samples.tokens": 8}
ANSWERS = {
    "eval.generation.files": f"{EXAMPLES}/instruct.jsonl",
    "eval.generation.max_examples": 4,
    "eval.generation.max_new_tokens": 8,
}
ADAPTED = {
    "adaptation.lora.rank": 4,
    "adaptation.lora.dropout": 0.1,
    "adaptation.kl.strength": 0.1,
    "optimizer.warmup": 2,
}
FIRST = [
    smoke("next_token,gpt2", program=True, changes=SAMPLES),
    smoke("masked,bert", program=True),
    smoke("span_corruption,t5", program=True),
    smoke("classification,bert"),
    smoke("instruct,llama", changes=ANSWERS),
    smoke("instruct,llama", "lora-kl", changes=ADAPTED, start="instruct-llama"),
    smoke("instruct,llama", "l2sp", changes={"adaptation.l2_sp": 0.1}, start="instruct-llama"),
    Job(
        "mixture-llama",
        config=MIXTURE,
        variant="instruct,llama",
        changes={"eval.data.heldout": HELD_OUT["instruct"]},
    ),
]
SECOND = [
    smoke(variant, process="2")
    for variant in (
        "prefix_lm,mamba",
        "ul2,t5",
        "denoising,bart",
        "token_classification,roberta",
        "question_answering,llama",
        "contrastive,bert",
        "distillation,llama",
        "replaced_token_detection,electra",
    )
] + [
    smoke("contrastive,bert", "accumulate", "2", {"accumulate": 2}),
    smoke("masked,bert", "dropout", "2", {"model.dropout": 0.1}),
    smoke("span_corruption,t5", "accumulate", "2", {"accumulate": 2, "model.dropout": 0.1}),
    smoke("next_token,gpt2", "ema", "2", {"optimizer.ema": 0.9, "optimizer.skip_above": 2.0}),
    smoke("next_token,llama", "fsdp", "2", {"mesh.fsdp": 2, "mesh.tensor": 2}),
    smoke("next_token,llama", "muon", "2", {"optimizer.name": "muon", "model.remat": "full"}),
    smoke(
        "next_token,gpt2",
        "resumed",
        "2",
        first=STEPS // 2,
        changes={"model.dropout": 0.1, "optimizer.schedule": "constant", "optimizer.warmup": 2},
    ),
    Job(
        "superni-t5",
        config="configs/superni_t5_small.py",
        variant="tiny",
        process="2",
        changes={"steps": 4, "eval.every": 4, "checkpoint.every": 4},
    ),
]
# in their own process: XLA's flags depend on the dtype
THIRD = [
    smoke(
        "next_token,llama",
        BYTES_16,
        BYTES_16,
        {"model.dtype": BYTES_16, "model.param_dtype": BYTES_16},
    ),
]
# runs that are evaluated and exported -> their arguments of lm.evaluate
RUNS = {
    "next_token-gpt2": ("--data=LICENSE",),
    "span_corruption-t5": ("--data=LICENSE",),
    "classification-bert": ("--task=classification", f"--data={EXAMPLES}/topics.jsonl"),
    "instruct-llama-lora-kl": (f"--examples={EXAMPLES}/instruct.jsonl", "--max_new_tokens=4"),
}
ENCODER = "masked-bert"  # the run whose export embeds the memory's passages
MADE = [
    Job("memory", "memory", needs=(ENCODER,)),
    Job("runs", "runs", needs=tuple(RUNS)),
]
OF_OTHER = [
    Job("memory-of-other", "search", of_other="memory", process="of-other"),
    Job("runs-of-other", "runs", of_other="runs", process="of-other"),
]
JOBS = [*FIRST, *MADE, *SECOND, *THIRD, *OF_OTHER]


def chosen(pattern: str, jobs: list[Job]) -> list[Job]:
    """Select the jobs whose names match the glob and the jobs they need, in order."""
    by_name = {job.name: job for job in jobs}
    wanted = [job.name for job in jobs if fnmatch.fnmatchcase(job.name, pattern)]
    for name in wanted:  # the list grows in the loop
        job = by_name[name]
        wanted += [n for n in (job.start, job.of_other, *job.needs) if n and n not in wanted]
    return [job for job in jobs if job.name in wanted]


def asked(job: Job) -> dict:
    """Describe as JSON what a job computes. Records are comparable if this is equal."""
    common = COMMON if job.kind == "train" else {}
    runs = {name: list(asked) for name, asked in RUNS.items()} if job.kind == "runs" else {}
    return {
        "kind": job.kind,
        "config": job.config,
        "variant": job.variant,
        "changes": common | job.changes,
        "start": job.start,
        "first": job.first,
        "program": job.program,
        "runs": runs,
        "needs": list(job.needs),
    }


def inputs(root: pathlib.Path) -> dict[str, str]:
    """Read the jobs' input files: name, relative to the folder the jobs run in -> text."""
    files = [root / "LICENSE", *sorted((root / EXAMPLES).rglob("*.json*"))]
    found = {file.relative_to(root).as_posix(): file.read_text("utf-8") for file in files}
    return found | {"license.txt": found["LICENSE"][:1500]}
