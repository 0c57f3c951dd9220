"""Evaluation of a model on text: perplexity or pseudo-perplexity, and bits per byte."""

import dataclasses
import math
import tempfile
from typing import Any

import jax

from lm import tasks
from lm.data.encode import plain_text
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import replicated
from lm.evaluation import perplexity, pseudo
from lm.evaluation.progress import bar
from lm.models import inputs
from lm.models.config import ConfigError
from lm.phases import phase
from lm.tasks.task import Task
from lm.tasks.text import TextTask
from lm.weights.loading import load, run_config


@phase("evaluating")
def of_text(args) -> tuple[dict, str]:
    """Evaluate a model on the text of `args.data`: return (numbers, report).

    Raises ValueError or OSError.
    """
    model, params, tokenizer = load(args.model, args.dtype, args.quantize)
    trained = run_config(args.model)
    length = args.length or perplexity.row_length(args.model, model.config.max_length)
    name, task = objective_of(trained, args.objective, model.config, tokenizer)
    longest = length if task is None else task.longest(length)
    perplexity.check_length(length, model.config.max_length, longest)
    data = trained.get("task", {})
    field, separator = (
        getattr(args, key) or data.get(key) or usual
        for key, usual in (("field", "text"), ("separator", ""))
    )
    mesh = make_mesh()
    batch_size = -(-args.batch_size // mesh.size) * mesh.size
    params = jax.device_put(params, replicated(mesh))
    whole = task is None or task.whole
    with tempfile.TemporaryDirectory() as cache:
        packed = plain_text.pack_files(
            args.data, tokenizer, length, cache, field=field, separator=separator, whole=whole
        )
        inputs.check(
            model.config, {"tokens": packed.tokens, "segments": packed.segments}, tokenizer
        )
        inputs.check(
            model.config, {"tokens": packed.targets, "segments": packed.segments}, tokenizer
        )
        if task is None:
            with bar(min(args.max_rows or len(packed), len(packed)), "windows") as done:
                result = pseudo.evaluate(
                    model, params, packed, tokenizer, mesh, batch_size, args.max_rows, done
                )
        else:
            transform = task.transform(tokenizer, model.config)
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


def objective_of(trained: dict, asked: str, c, tokenizer) -> tuple[str, TextTask | None]:
    """Choose the task for a model on text; None = pseudo-perplexity. Raises ConfigError.

    It is `asked`, or else the default of the model's head, see docs/evaluation.md. trained: the
    config of a run, or {}; a run trained with the same task gives its options.
    """
    known = [
        name
        for name, kind in tasks.TASKS.items()
        if issubclass(kind, TextTask) and c.head in kind.heads and kind.aux is Task.aux
    ]
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
    trained = trained.get("task", {})
    usual = {"causal_lm": "next_token", "masked_lm": pseudo.NAME}.get(c.head)
    # an encoder-decoder gives no probability of a text alone, so use its own task
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
    if name == pseudo.NAME:
        return name, None
    kind: Any = tasks.TASKS[name]
    return name, tasks.of({"task": trained}) if trained.get("name") == name else kind()
