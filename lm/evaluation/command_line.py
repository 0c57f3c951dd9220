"""Command-line flags of python -m lm.evaluate, and evaluation on text and on instruct data."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile

import jax

from lm.data import packing, records, templates
from lm.data.labelled import TASKS
from lm.data.records import Reading
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import replicated
from lm.evaluation import generation, perplexity, pseudo, scores, words
from lm.evaluation.progress import bar
from lm.loading import kept_template, load, load_template, run_config
from lm.models import inputs
from lm.models.config import ConfigError
from lm.objectives import OBJECTIVES
from lm.phases import phase
from lm.printing import program

# objectives that read plain text
OF_TEXT = ("next_token", "prefix_lm", "masked", "span_corruption", "ul2", "denoising")
LEAST = {
    "batch_size": 1,
    "max_new_tokens": 1,
    "max_rows": 0,
    "cap": 0,
    "max_examples": 0,
    "length": 0,
    "stride": 0,
}


def arguments(description: str, argv=None) -> argparse.Namespace:
    """Parse the command line. Raises SystemExit, like argparse."""
    parser = argparse.ArgumentParser(
        prog=program("lm.evaluate"),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, help="run folder, model directory, hub id or .gguf file"
    )
    parser.add_argument(
        "--data",
        metavar="GLOBS",
        help="comma-separated files and globs: text, or .jsonl with a text field",
    )
    parser.add_argument(
        "--examples",
        metavar="GLOBS",
        help="instruct data to answer: files, folders, globs or lists of tasks",
    )
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=int,
        default=8,
        help="windows or answers at a time (default 8)",
    )
    parser.add_argument(
        "--max_rows",
        "--max-rows",
        type=int,
        default=0,
        help="read only the first N windows; 0 = all",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the numbers as JSON, to FILE or standard output",
    )
    text = parser.add_argument_group("with --data")
    text.add_argument(
        "--length",
        type=int,
        default=0,
        help="tokens a window (default: a run's own, else at most 1024)",
    )
    text.add_argument(
        "--field",
        default="",
        help="the field of a JSONL record that holds the text (default: a run's own, or text)",
    )
    text.add_argument(
        "--separator",
        default="",
        help="what divides a text file into documents (default: a run's own, or nothing)",
    )
    text.add_argument(
        "--objective",
        default="",
        help="what is asked of the model (default: see docs/evaluation.md)",
    )
    labelled = parser.add_argument_group(
        "with --data and --task; a run's own fields, length and stride are the defaults"
    )
    labelled.add_argument(
        "--task", default="", help=f"score labels instead of text: {', '.join(TASKS)}"
    )
    labelled.add_argument(
        "--label_field",
        "--label-field",
        default="",
        help="the field of the label (default: label, or tags)",
    )
    labelled.add_argument(
        "--pair_field",
        "--pair-field",
        default="",
        help="the field of the second text of a pair (default: none)",
    )
    labelled.add_argument(
        "--stride",
        type=int,
        default=0,
        help="tokens from one window of a context to the next (default: a third)",
    )
    labelled.add_argument("--predictions", metavar="FILE", help="write every prediction as JSONL")
    asked = parser.add_argument_group("with --examples")
    asked.add_argument(
        "--format", default="auto", help=f"auto (default), {', '.join(records.FORMATS)}"
    )
    asked.add_argument(
        "--template",
        default="",
        help=f"of a model that was not trained with one: {', '.join(templates.TEMPLATES)}",
    )
    asked.add_argument(
        "--template_options",
        "--template-options",
        default="{}",
        metavar="JSON",
        help="such as '{\"positive\": 2}'",
    )
    asked.add_argument(
        "--force_template",
        "--force-template",
        action="store_true",
        help="though the run was trained with another template",
    )
    asked.add_argument(
        "--metrics",
        default=generation.METRICS,
        help=f"comma-separated, of {', '.join(scores.METRICS)}",
    )
    asked.add_argument(
        "--rouge_tokenizer",
        "--rouge-tokenizer",
        default=words.ROUGE,
        metavar="NAME",
        help="what makes ROUGE's words: rouge (default, its "
        "own: stems of a-z and 0-9), unicode (any script), or the folder, hub id or .gguf file of "
        "a tokenizer",
    )
    asked.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="tokens an answer (default 128)",
    )
    asked.add_argument(
        "--cap", type=int, default=0, help="only the first N records of each task; 0 = all"
    )
    asked.add_argument(
        "--hold_out",
        "--hold-out",
        default="",
        help="only these tasks: names or globs, or a share, as data.hold_out",
    )
    asked.add_argument(
        "--max_examples",
        "--max-examples",
        type=int,
        default=0,
        help="only N records, spread over all; 0 = all",
    )
    asked.add_argument(
        "--baselines",
        action="store_true",
        help="also score copying the input, and the answer of a demonstration",
    )
    asked.add_argument(
        "--answers", metavar="FILE", help="write every prompt, answer, reference and score as JSONL"
    )
    return parser.parse_args(argv)


def check_counts(args: argparse.Namespace) -> None:
    """Raise ValueError for a number that is too small."""
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')}={getattr(args, name)}: expected at least {least}"
            )


@phase("evaluating")
def of_text(args) -> tuple[dict, str]:
    """Evaluate a model on the text of `args.data`: return (numbers, report).

    Raises ValueError or OSError.
    """
    model, params, tokenizer = load(args.model, args.dtype)
    trained = run_config(args.model)
    length = args.length or perplexity.row_length(args.model, model.config.max_length)
    name, options = objective_of(trained, args.objective, model.config, tokenizer)
    longest = length if name == pseudo.NAME else OBJECTIVES[name].longest(length, **options)
    perplexity.check_length(length, model.config.max_length, longest)
    data = trained.get("data", {})
    field, separator = (
        getattr(args, key) or data.get(key) or usual
        for key, usual in (("field", "text"), ("separator", ""))
    )
    mesh = make_mesh()
    batch_size = -(-args.batch_size // mesh.size) * mesh.size
    params = jax.device_put(params, replicated(mesh))
    whole = name == pseudo.NAME or OBJECTIVES[name].whole
    with tempfile.TemporaryDirectory() as cache:
        packed = packing.pack_files(
            args.data, tokenizer, length, cache, field=field, separator=separator, whole=whole
        )
        inputs.check(
            model.config, {"tokens": packed.tokens, "segments": packed.segments}, tokenizer
        )
        inputs.check(
            model.config, {"tokens": packed.targets, "segments": packed.segments}, tokenizer
        )
        if name == pseudo.NAME:
            with bar(min(args.max_rows or len(packed), len(packed)), "windows") as done:
                result = pseudo.evaluate(
                    model, params, packed, tokenizer, mesh, batch_size, args.max_rows, done
                )
        else:
            make = OBJECTIVES[name].transform
            transform = None if make is None else make(tokenizer, model.config, **options)
            result = perplexity.make_evaluator(model, mesh, batch_size, transform=transform)(
                params, packed, args.max_rows
            )
    found = {
        "model": args.model,
        "data": args.data,
        "length": length,
        "objective": name,
        **dataclasses.asdict(result),
    }
    kind = "pseudo-perplexity" if name == pseudo.NAME else "perplexity"
    said = (
        f"{name}: loss {result.loss:.4f} nats a token, {kind} {result.perplexity:.2f}, "
        f"{result.tokens:,} tokens "
    )
    said += f"in rows of {length}" + (
        ", as the run was trained" if length == trained.get("length") else ""
    )
    if not math.isnan(result.bits_per_byte):
        over = f"over {result.units} {result.unit}s"
        said += (
            f", {result.bytes:,} bytes\nbits per byte {result.bits_per_byte:.4f} ± "
            f"{result.bits_per_byte_stderr:.4f}"
        )
        said += f" (standard error {over})"
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in found.items()
    }, said


def objective_of(trained: dict, asked: str, c, tokenizer) -> tuple[str, dict]:
    """Choose the objective for a model on text and its options. Raises ConfigError.

    It is `asked`, or else the default of the model's head, see docs/evaluation.md. trained: the
    config of a run, or {}; a run trained with the same objective gives its options.
    """
    known = [name for name in OF_TEXT if c.head in OBJECTIVES[name].heads]
    known += [pseudo.NAME] * (c.head == "masked_lm")
    if not known:
        raise ConfigError(
            f"a {c.family} model with head={c.head!r} says nothing of a text's probability: "
            "give it labelled data or instruct data"
        )
    if asked and asked not in known:
        raise ConfigError(
            f"--objective={asked!r}: for a model with head={c.head!r} it is one of "
            f"{', '.join(known)}"
        )
    trained = trained.get("objective", {})
    usual = {"causal_lm": "next_token", "masked_lm": pseudo.NAME}.get(c.head)
    # an encoder-decoder gives no probability of a text alone, so use its own objective
    if usual is None:
        sentinels = "<extra_id_0>" in tokenizer.get_vocab()
        usual = (
            trained.get("name")
            if trained.get("name") in known
            else "span_corruption"
            if sentinels
            else "denoising"
        )
    name = asked or str(usual)
    return name, dict(trained.get(name) or {}) if trained.get("name") == name else {}


@phase("evaluating")
def of_examples(args) -> tuple[dict, str]:
    """Evaluate a model's answers to the instruct data of `args.examples`: return (numbers, report).

    Raises ValueError or OSError.
    """
    metrics = scores.chosen(args.metrics, words.tokenize_of(args.rouge_tokenizer))
    reading = Reading(args.format, args.cap, args.hold_out)
    read = records.read(args.examples, reading, "held_out" if args.hold_out else "all")
    model, params, tokenizer = load(args.model, args.dtype)
    template = template_of(args, tokenizer)
    chosen = generation.spread(templates.with_examples(read.records, template), args.max_examples)
    asked = generation.questions(chosen, template, model, tokenizer, args.max_new_tokens)
    if doubt := words.doubt(
        [question.references for question in asked], [*metrics], args.rouge_tokenizer
    ):
        print(f"warning: {doubt}", file=sys.stderr)
    with bar(len(asked), "answers") as done:
        given = generation.answers(
            model,
            params,
            tokenizer,
            asked,
            args.max_new_tokens,
            template,
            batch_size=args.batch_size,
            on_batch=done,
        )
    found = generation.scored(asked, given, metrics)
    tasks = [question.record.task for question in asked]
    lines = scores.table(found, tasks if len(set(tasks)) > 1 else None, clusters=tasks)
    lines[0] = dataclasses.replace(lines[0], name="model")
    categories = generation.by_category(asked, found)
    numbers = {
        "model": args.model,
        "examples": args.examples,
        "template": templates.remember(template),
        "answers": len(asked),
        "shortened_prompts": sum(question.shortened > 0 for question in asked),
        "all": _numbers(lines[0]),
        "tasks": {line.name: _numbers(line) for line in lines[1:]},
        "rouge_tokenizer": args.rouge_tokenizer,
        "warnings": [doubt] if doubt else [],
        "categories": {line.name: _numbers(line) for line in categories},
    }
    if args.baselines:
        others = {
            name: scores.table(values, clusters=tasks)[0]
            for name, values in generation.baselines(asked, metrics).items()
        }
        numbers["baselines"] = {name: _numbers(line) for name, line in others.items()}
        lines[1:1] = [dataclasses.replace(line, name=name) for name, line in others.items()]
    if args.answers:
        write_answers(pathlib.Path(args.answers), asked, given, found)
    said = (
        f"template {template.name}, greedy, at most {args.max_new_tokens} tokens; 95 % intervals, "
        "whole tasks drawn again\n\n"
    )
    said += scores.formatted(lines) + (
        f"\n\nby category\n\n{scores.formatted(categories)}" if len(categories) > 1 else ""
    )
    shortened = numbers["shortened_prompts"]
    return numbers, said + (
        f"\n\n{shortened} prompts were shortened to fit the model" if shortened else ""
    )


def template_of(args, tokenizer) -> templates.Template:
    """Return the template that is named, or that the model was trained with.

    Raises ConfigError if the two differ.
    """
    try:
        options = dict(json.loads(args.template_options))
    except (ValueError, TypeError):
        raise ConfigError(
            f"--template-options={args.template_options}: expected a JSON object, "
            f"such as '{{\"positive\": 2}}'"
        ) from None
    if args.template:
        options = templates.date_of(kept_template(args.model), args.template, tokenizer) | options
    named = templates.get(args.template, tokenizer, **options) if args.template else None
    kept = None if args.force_template else load_template(args.model, tokenizer)
    chosen = kept if named is None else named
    if chosen is None:
        raise ConfigError(
            f"--template is not set, and {args.model} was trained with none: "
            f"one of {', '.join(templates.TEMPLATES)}"
        )
    if named is not None and kept is not None and named.fingerprint != kept.fingerprint:
        raise ConfigError(
            f"--template={args.template}: {args.model} was trained with the template {kept.name!r} "
            f"and options {dict(kept.options)}: "
            "its answers to another say little; leave --template out, or add --force-template"
        )
    return chosen


def write_answers(path: pathlib.Path, asked, given, found) -> None:
    """Write one JSON object per line: task, prompt, answer, references, stopped and scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(zip(asked, given, strict=True)):
            row = {
                "task": question.record.task,
                "prompt": question.text,
                "answer": answer.text,
                "references": question.references,
            }
            row |= {"stopped": answer.stopped} | {
                name: float(values[number]) for name, values in found.items() if name != "stop_rate"
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _numbers(line: scores.Scored) -> dict:
    given = {
        name: [None if math.isnan(x) else x for x in interval]
        for name, interval in line.intervals.items()
    }
    return {"answers": line.answers, "scores": line.scores, "intervals": given}
