"""Stages that the studies of the doors share: a memory, questions, their scores and an audit."""

import ml_collections

from lm.data.samples import directory

READER = "{samples}/smollm2-135m-instruct.gguf"
FACTS, QUESTIONS = "configs/examples/facts.jsonl", "configs/examples/facts_questions.jsonl"


def chain(method, door, variant, reader=READER, trained="configs/tiny.py:gpt2"):
    """Study of one door. Raises ValueError for an unknown variant.

    door: as --door takes it. reader: answers the questions. Variants: "tiny" trains one with the
    config `trained` instead, and another as the encoder; "trained" trains the reader with the
    memory first (configs/memory/open_book.py), and asks it by the door of its run; "trained-tiny".
    """
    with_memory, variant = variant.startswith("trained"), variant.removeprefix("trained")
    if with_memory:
        method, variant = f"{method}-trained", variant.removeprefix("-")
    if variant not in ("", "tiny"):
        raise ValueError(f"variant {variant!r} is unknown; this config has 'tiny'")
    c = ml_collections.ConfigDict()
    c.name = f"memory-{method}{'-tiny' if variant else ''}"
    c.samples_dir = str(directory())  # --samples-dir overrides it
    if variant:
        reader, encoder = "{workdir}/reader", "{workdir}/encoder"
        passages, questions = FACTS, QUESTIONS
        first = (*_trained("reader", trained), *_encoder(encoder))
    else:
        encoder = "{samples}/minilm"
        passages, questions = "{workdir}/passages.jsonl", "{workdir}/questions.jsonl"
        first = _samples(passages, questions)
    task, run = f"{door.partition(',')[0]}{'-tiny' if variant else ''}", "{workdir}/trained"
    asked = {"memory": "{workdir}/memory", "reader": reader, "door": door}
    learns = {"config": f"configs/memory/open_book.py:{task}", "workdir": run}
    learns |= {"config.init_from": reader, "config.task.memory": "{workdir}/memory"}
    learns["config.data.files"] = questions if variant else "{workdir}/train.jsonl"
    if with_memory:
        asked = {"memory": "{workdir}/memory", "reader": run}
    asked = asked | {"questions": questions} | ({"max-new-tokens": 4} if variant else {})
    memory = dict(memory="{workdir}/memory", encoder=encoder, input=passages, replace=True)
    c.stages = (
        *first,
        _stage("memory", "retrieval.build", memory, 70, "{workdir}/memory"),
        *([_stage("train", "lm.train", learns, 1200, run)] if with_memory else []),
        _stage(
            "ask",
            "retrieval.evaluate",
            asked | {"output": "{workdir}/answers.jsonl"},
            150,
            "{workdir}/answers.jsonl",
        ),
        _stage("audit", "retrieval.audit", asked, 600),
    )
    return c


def _stage(name, module, args, seconds, *outputs):
    return dict(name=name, module=module, args=args, seconds=seconds, outputs=list(outputs))


def _samples(passages, questions):
    """A passage for each city, country and element, and questions about them."""
    samples = {"samples-dir": "{samples}"}
    made = samples | {"workdir": "{workdir}"}
    return (
        _stage("samples", "lm.data.samples", samples, 15),
        _stage(
            "passages",
            "launch.quickstart.passages",
            made | {"train-per-bin": 100},
            4,
            passages,
            questions,
            "{workdir}/train.jsonl",
        ),
    )


def _trained(name, config):
    """A model of bytes, of a few steps, whose context holds a few passages."""
    run = "{workdir}/" + name
    args = {"config": config, "workdir": run, "config.steps": 4, "config.model.max_length": 512}
    return (_stage(name, "lm.train", args | {"config.samples.prompts": "()"}, 30, run),)


def _encoder(encoder):
    """Another of these, whose last hidden state embeds passages."""
    exported = {"model": "{workdir}/embedder", "output": encoder}
    return (
        *_trained("embedder", "configs/tiny.py:gpt2"),
        _stage("export", "lm.export", exported, 10, encoder),
    )
