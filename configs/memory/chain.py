"""Stages that the studies of the doors share: a memory, questions, their scores and an audit."""

import ml_collections

from lm.data.samples import directory

READERS = {  # name -> what answers, and the config of a small one for :tiny
    "smollm2": ("{samples}/smollm2-135m-instruct.gguf", "configs/tiny.py:gpt2"),
    "mamba": ("state-spaces/mamba-130m-hf", "configs/tiny.py:mamba"),
    "bart": ("facebook/bart-base", "configs/smoke.py:denoising,bart"),
    "t5": ("google/flan-t5-small", "configs/smoke.py:span_corruption,t5"),
    "spans": (
        "distilbert/distilbert-base-cased-distilled-squad",
        "configs/smoke.py:question_answering,bert",
    ),
    "classes": ("", "configs/smoke.py:classification,bert"),  # of which only you have one
}
FACTS, QUESTIONS = "configs/examples/facts.jsonl", "configs/examples/facts_questions.jsonl"


def chain(method, door, variant, readers=("smollm2", "mamba", "bart", "t5")):
    """Study of one door. Raises ValueError for an unknown variant.

    door: as --door takes it. readers: of READERS, those that the door serves; the first answers,
    or the one that `variant` names, as in "mamba" or "tiny,mamba". Variants: "tiny" trains a small
    reader, and another as the encoder; "trained" trains the reader with the memory first
    (configs/memory/open_book.py), and asks it by the door of its run; "trained-tiny".
    """
    variant, _, name = (f",{variant}" if variant in READERS else variant).partition(",")
    if (name := name or readers[0]) not in readers:
        raise ValueError(f"reader {name!r} is unknown; this config has {', '.join(readers)}")
    reader, trained = READERS[name]
    if not reader and "tiny" not in variant:
        raise ValueError(f"no reader for {name!r} is published: try 'tiny,{name}', or ask your own")
    with_memory, variant = variant.startswith("trained"), variant.removeprefix("trained")
    if with_memory:
        method, variant = f"{method}-trained", variant.removeprefix("-")
    if variant not in ("", "tiny"):
        raise ValueError(f"variant {variant!r} is unknown; this config has 'tiny'")
    c = ml_collections.ConfigDict()
    c.name = f"memory-{method}{f'-{name}' * (name != readers[0])}{'-tiny' * bool(variant)}"
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
    scored = {"output": "{workdir}/answers.jsonl"} | ({} if variant else {"by": "bin"})
    memory = dict(memory="{workdir}/memory", encoder=encoder, input=passages, replace=True)
    c.stages = (
        *first,
        _stage("memory", "retrieval.build", memory, 70, "{workdir}/memory"),
        *([_stage("train", "lm.train", learns, 1200, run)] if with_memory else []),
        _stage(
            "ask",
            "retrieval.evaluate",
            asked | scored,
            570,
            "{workdir}/answers.jsonl",
        ),
        _stage("audit", "retrieval.audit", asked, 3000),
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
