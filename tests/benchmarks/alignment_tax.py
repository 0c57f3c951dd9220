"""What alignment costs: perplexity and minimal pairs before and after reward and preference tuning.

python -m tests.benchmarks.alignment_tax --data=t0 --wikitext=wikitext-2/valid.txt --blimp=blimp

SmolLM2-135M-Instruct learns multiple-choice questions of T0 (sciq and commonsense_qa, every fourth
held out) in as many updates by each of METHODS: the same prompts, and as many of them an update.
Before and after, measured are greedy answers to held-out questions, perplexity of a part of
WikiText-2 and minimal pairs of BLiMP. The last lines are the table. A run or a measurement that is
already in --workdir is used again.
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lm
from configs.defaults import defaults
from lm import tasks
from lm.data import samples, templates
from lm.data.encode.encoding import Encoder
from lm.data.encode.plain_text import start_token
from lm.data.records.examples import Record
from lm.evaluation.accuracy import contains, wilson
from lm.evaluation.corpus import Statistics
from lm.evaluation.likelihood import token_log_likelihoods, windows
from lm.evaluation.scores import bootstrap
from lm.generation.text import generate_text
from lm.rewards import Answer
from lm.rewards.exact_match import normalised
from lm.training import loop

FILES = "sciq_Multiple_Choice_Closed_Book_.jsonl", "commonsense_qa_most_suitable_answer.jsonl"
SENTENCES = "sentence_good", "sentence_bad"
REWARDS = {
    "exact_match": {"weight": 0.5},
    "named": {"type": "tests.benchmarks.alignment_tax:named", "weight": 0.5},
}
PROMPT, NEW, GROUP, BATCH = 72, 16, 8, 2  # tokens of a prompt and an answer, answers, prompts
WINDOW = 256  # tokens of text


@dataclasses.dataclass(frozen=True)
class Method:
    task: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 3e-4
    rank: int = 16  # of LoRA; 0 = all weights are trained
    kl: float = 0.0  # strength of the divergence from the base

    @property
    def draws(self) -> bool:
        return "rewards" in self.options


DRAWN = {"rewards": REWARDS, "group": GROUP, "new_tokens": NEW}
TAUGHT = {"format": "completion", "completion_field": "answer"}
METHODS = {
    "grpo": Method("grpo", DRAWN),
    "grpo_kl": Method("grpo", DRAWN | {"kl": 0.04}),
    "rloo": Method("grpo", DRAWN | {"baseline": "leave_one_out", "scale": "none"}),
    "ppo": Method("ppo", DRAWN | {"kl": 0.05}),
    "dpo": Method("dpo"),
    "ipo": Method("dpo", {"kind": "ipo"}),
    "kto": Method("kto"),
    "simpo": Method("simpo"),
    "orpo": Method("orpo"),
    "instruct_lora": Method("instruct", TAUGHT),
    "instruct": Method("instruct", TAUGHT, rate=1e-4, rank=0),
    "instruct_kl": Method("instruct", TAUGHT, rate=1e-4, rank=0, kl=0.5),
}


def named(answer: Answer) -> float:
    """1.0 if the answer contains the right choice and no other."""
    record = answer.record
    others = [choice for choice in record["choices"] if choice != record["answer"]]
    return float(contains(answer.text, [record["answer"]]) and not contains(answer.text, others))


def question(row: dict) -> dict | None:
    """Row for all tasks: prompt, answer, choices; chosen and rejected, a wrong choice."""
    prompt, answer = row["prompt"].strip(), row["completion"].replace("<|endoftext|>", "").strip()
    choices = [choice.strip() for choice in re.findall(r"^- (.+)$", prompt, re.MULTILINE)]
    wrong = [choice for choice in choices if normalised(choice) != normalised(answer)]
    if len(wrong) + 1 != len(choices):
        return None  # the answer is no choice, or twice
    rejected = wrong[sum(prompt.encode()) % len(wrong)]
    found = {"prompt": prompt, "answer": answer, "choices": choices}
    return found | {"chosen": answer, "rejected": rejected}


def write(folder: Path, data: Path) -> dict[str, list[dict]]:
    """Write train.jsonl and heldout.jsonl, every fourth question; their rows."""
    parts: dict[str, list[dict]] = {"train": [], "heldout": []}
    for name in FILES:
        lines = (data / name).read_text(encoding="utf-8").splitlines()
        rows = filter(None, (question(json.loads(line)) for line in lines))
        for at, row in enumerate(rows):
            parts["heldout" if at % 4 == 3 else "train"].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return parts


def config(folder: Path, method: str, model: str, template: str, steps: int, seed: int):
    one, c = METHODS[method], defaults()
    c.seed, c.steps, c.batch_size, c.init_from = seed, steps, BATCH, model
    c.length = PROMPT + NEW
    if one.draws:
        c.model.layers = "separate"  # faster to decode on a CPU
    elif one.task != "instruct":
        c.length *= 2  # both answers to one question a row
    if one.task == "kto":
        c.batch_size *= 2  # a row learns from one answer, and compares it with another record's
    if one.task == "ppo":  # all weights of the critic are trained
        c.optimizer.rates = (("^models/critic/", 1 / 3), *c.optimizer.rates)
    c.task = tasks.defaults(one.task, template=template, max_long=0.5, **one.options)
    c.data.files = str(folder / "train.jsonl")
    c.adaptation.lora.rank, c.adaptation.kl.strength = one.rank, one.kl
    c.optimizer.learning_rate, c.optimizer.schedule = one.rate, "constant"
    c.optimizer.warmup, c.optimizer.weight_decay = min(2, steps // 2), 0.0
    c.eval.every, c.checkpoint.every, c.log.every = 0, steps, 1
    c.log.tensorboard = False
    return c


def measured(path: str, rows: list[dict], text: str, pairs: list[dict], template: str) -> dict:
    """Figures of each held-out question, window of text and minimal pair."""
    start = time.process_time()
    model, params, tokenizer = lm.load(path)
    asked, encoder = templates.get(template, tokenizer), Encoder(tokenizer, None)
    prompts = [encoder.prompt(asked.prompt(Record(instruction=row["prompt"]))) for row in rows]
    stop = [*model.config.eos_token_ids, templates.stop_id(asked, tokenizer)]
    answers = [
        Answer(row["prompt"], said.strip(), row, True, len(tokenizer(said)["input_ids"]))
        for row, said in zip(
            rows,
            generate_text(model, params, tokenizer, prompts, NEW, stop_tokens=stop, batch_size=32),
            strict=True,
        )
    ]
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = start_token(tokenizer)
    sentences = [([begin], ids(row[key])) for row in pairs for key in SENTENCES]
    logs = [
        [-float(each.sum(dtype=np.float64)) for each, _ in found]
        for found in (
            token_log_likelihoods(model, params, [*windows(ids(text), begin, WINDOW)]),
            token_log_likelihoods(model, params, sentences, batch_size=64),
        )
    ]
    sizes = [len(after) for _, after in windows(ids(text), begin, WINDOW)]
    return {
        "exact": [float(normalised(a.text) == normalised(a.record["answer"])) for a in answers],
        "named": [named(a) for a in answers],
        "tokens": [a.tokens for a in answers],
        "answers": [a.text for a in answers],
        "losses": logs[0],
        "sizes": sizes,
        "hits": [float(good < bad) for good, bad in zip(logs[1][::2], logs[1][1::2], strict=True)],
        "paradigms": [row["UID"] for row in pairs],
        "cpu_seconds": time.process_time() - start,
    }


def perplexity(found: dict) -> float:
    return float(np.exp(sum(found["losses"]) / sum(found["sizes"])))


def dearer(found: dict, before: dict) -> tuple[float, float, float]:
    """Change of perplexity as a share, with its 95 % interval over the same windows."""
    change = np.subtract(found["losses"], before["losses"])
    counts = np.stack([change, np.array(before["sizes"])], axis=1)
    each = Statistics(counts, lambda sums: float(np.expm1(sums[0] / sums[1])), "")
    return each.mean(), *bootstrap(each)


def better(found: dict, before: dict) -> tuple[float, float, float]:
    """Change of the share of minimal pairs that are right, resampling paradigms."""
    change = np.subtract(found["hits"], before["hits"])
    return float(change.mean()), *bootstrap(change, before["paradigms"])


def line(name: str, found: dict, before: dict, seconds: float) -> str:
    """Row of the table."""
    right = int(sum(found["exact"]))
    low, high = wilson(right, len(found["exact"]))
    cells = [
        name,
        f"{right / len(found['exact']):.1%} ({low:.1%} to {high:.1%})",
        f"{np.mean(found['named']):.1%}",
        f"{np.mean(found['tokens']):.1f}",
        f"{perplexity(found):.2f}",
    ]
    if found is before:
        cells += ["", f"{np.mean(found['hits']):.1%}", "", ""]
    else:
        cells.append("{:+.1%} ({:+.1%} to {:+.1%})".format(*dearer(found, before)))
        cells.append(f"{np.mean(found['hits']):.1%}")
        cells.append("{:+.1%} ({:+.1%} to {:+.1%})".format(*better(found, before)))
        cells.append(f"{seconds:.0f}")
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| method | held-out answers right (95 %) | right choice named | tokens | perplexity | change |"
    " minimal pairs | change | CPU s |\n|---|---|---|---|---|---|---|---|---|"
)


def part(file: Path, tokens: int) -> str:
    """The end of a text, about as long as that many tokens, from the start of a line on."""
    text = file.read_text(encoding="utf-8")[-4 * tokens :]
    return text[text.index("\n") + 1 :]


def paradigms(folder: Path, each: int) -> list[dict]:
    """The first pairs of every paradigm."""
    files = sorted(folder.glob("*.jsonl"))
    return [
        json.loads(row)
        for file in files
        for row in file.read_text(encoding="utf-8").splitlines()[:each]
    ]


def kept(file: Path, make) -> dict:
    """What `make` finds, or found before."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def trained(c, workdir: Path) -> dict:
    start = time.process_time()
    loop.train(c, str(workdir))
    return {"cpu_seconds": time.process_time() - start}


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", required=True, type=Path, help="folder of T0's JSON lines")
    options.add_argument("--wikitext", required=True, type=Path)
    options.add_argument("--blimp", required=True, type=Path, help="folder of minimal pairs")
    options.add_argument("--workdir", type=Path, default=Path("runs/alignment_tax"))
    options.add_argument("--model", default="", help="default: SmolLM2 of lm.data.samples")
    options.add_argument("--template", default="chatml")
    options.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    options.add_argument("--steps", type=int, default=20, help="updates of each method")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--tokens", type=int, default=4096, help="of text, about")
    options.add_argument("--pairs", type=int, default=4, help="of each paradigm")
    args = options.parse_args(argv)
    rows, model = write(args.workdir, args.data), args.model or str(samples.fetch("smollm2"))
    print(", ".join(f"{len(each)} {name}" for name, each in rows.items()), flush=True)
    text, pairs = part(args.wikitext, args.tokens), paradigms(args.blimp, args.pairs)
    measure = lambda path: measured(path, rows["heldout"], text, pairs, args.template)
    before = kept(args.workdir / "before.json", lambda: measure(model))
    lines = [HEAD, line("before", before, before, 0.0)]
    for method in args.methods:
        run = args.workdir / f"{method}-{args.seed}"
        c = config(args.workdir, method, model, args.template, args.steps, args.seed)
        spent = kept(run.with_suffix(".json"), lambda c=c, run=run: trained(c, run))
        found = kept(run.with_suffix(".after.json"), lambda run=run: measure(str(run)))
        lines.append(line(method, found, before, spent["cpu_seconds"]))
        print(lines[-1], flush=True)
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
