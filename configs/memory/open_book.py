"""Train a reader to answer from a memory, with the door that it will be asked through.

python -m lm.train --config=configs/memory/open_book.py:METHOD --workdir=runs/open_book \
    --config.task.memory=runs/towns --config.data.files=questions.jsonl
METHOD: rag_sequence (the default), rag_token and replug also train the retriever's side of
questions; in_context; fid, for an encoder-decoder. Questions are JSON lines with `question` and
`answers`. The run is then asked with `openbook ask --memory=runs/towns --reader=runs/open_book`.
Hardware: a GPU. Not run here.

METHOD-tiny: eight updates from --config.init_from, on a CPU; configs/memory/rag.py:trained-tiny
and configs/memory/fid.py:trained-tiny are studies with it.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.models.config import ConfigError
from retrieval.doors.door import HOMES

MIXED = ("rag_sequence", "rag_token", "replug")  # a prompt for each passage

TINY = {
    "steps": 8,
    "batch_size": 8,
    "task.k": 3,
    "optimizer.warmup": 2,
    "checkpoint.every": 8,
    "log.every": 4,
}


def get_config(variant="rag_sequence"):
    method, size = variant.removesuffix("-tiny"), "tiny" * variant.endswith("-tiny")
    if method not in HOMES:
        raise ConfigError(f"method {method!r} is unknown: expected one of {', '.join(HOMES)}")
    mixed = method in MIXED
    c = defaults()
    c.init_from = "google/flan-t5-small" if method == "fid" else "HuggingFaceTB/SmolLM2-135M"
    c.task = tasks.defaults(
        "retrieval.tasks.open_book:OpenBook",
        memory="runs/towns",
        door=method,
        k=4,  # passages of a question
        answer_field="answers",
        retriever="marginal" if mixed else "",  # the encoder of questions learns with the reader
    )
    c.length = 4 * 256 if mixed else 1024  # tokens of a row, over the prompts of its passages
    c.steps = 500  # updates
    c.batch_size = 16  # questions per update
    c.optimizer.learning_rate = 3e-5
    c.optimizer.warmup = 50
    c.data.files = "questions.jsonl"
    c.eval.data = {}
    c.checkpoint.every = 250
    return specialise(c, size, tiny=TINY | {"length": 3 * 256 if mixed else 480})
