"""Evaluation of a model's answers to instruct data, by task and by category."""

import dataclasses
import json
import pathlib
import sys

from lm.data import templates
from lm.data.records import reading as records
from lm.data.records.reading import PAIR, Reading
from lm.evaluation import generation, scores, words
from lm.evaluation.progress import bar
from lm.models.config import ConfigError
from lm.phases import phase
from lm.weights.loading import kept_template, load, load_template, run_config


@phase("evaluating")
def of_examples(args) -> tuple[dict, str]:
    """Evaluate a model's answers to the instruct data of `args.examples`: return (numbers, report).

    Raises ValueError or OSError.
    """
    metrics = scores.chosen(args.metrics, words.tokenize_of(args.rouge_tokenizer))
    trained = run_config(args.model).get("task", {})
    fields = [
        getattr(args, name) or trained.get(name) or usual
        for name, usual in zip(("prompt_field", "completion_field"), PAIR, strict=True)
    ]
    reading = Reading(args.format, args.cap or 0, args.hold_out, pair=(fields[0], fields[1]))
    read = records.read(args.examples, reading, "held_out" if args.hold_out else "all")
    model, params, tokenizer = load(args.model, args.dtype, args.quantize)
    template = template_of(args, tokenizer)
    notes = [*read.warnings, *records.notes(read, generation.unscored(read.records))]
    chosen = generation.spread(templates.with_examples(read.records, template), args.max_examples)
    asked = generation.questions(chosen, template, model, tokenizer, args.max_new_tokens)
    if doubt := words.doubt(
        [question.references for question in asked], [*metrics], args.rouge_tokenizer
    ):
        notes.append(doubt)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
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
            beams=args.beams,
            length_penalty=args.length_penalty,
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
        "all": scores.numbers(lines[0]),
        "tasks": {line.name: scores.numbers(line) for line in lines[1:]},
        "rouge_tokenizer": args.rouge_tokenizer,
        "signatures": scores.signatures(found),
        "beams": args.beams,
        "length_penalty": args.length_penalty,
        "warnings": notes,
        "categories": {line.name: scores.numbers(line) for line in categories},
    }
    if args.baselines:
        others = {
            name: scores.table(values, clusters=tasks)[0]
            for name, values in generation.baselines(asked, metrics).items()
        }
        numbers["baselines"] = {name: scores.numbers(line) for name, line in others.items()}
        lines[1:1] = [dataclasses.replace(line, name=name) for name, line in others.items()]
    if args.answers:
        generation.write_answers(pathlib.Path(args.answers), asked, given, found)
    said = (
        f"template {template.name}, {_search(args)}, at most {args.max_new_tokens} tokens; 95 % "
        "intervals, whole tasks drawn again\n\n"
    )
    said += scores.formatted(lines) + (
        f"\n\nby category\n\n{scores.formatted(categories)}" if len(categories) > 1 else ""
    )
    said += "".join(f"\n\n{name}: {x}" for name, x in scores.signatures(found).items())
    shortened = numbers["shortened_prompts"]
    return numbers, said + (
        f"\n\n{shortened} prompts were shortened to fit the model" if shortened else ""
    )


def _search(args) -> str:
    if args.beams == 1:
        return "greedy"
    return f"{args.beams} beams, length penalty {args.length_penalty:g}"


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
