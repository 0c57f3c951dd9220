"""Console script: openbook COMMAND ARGS is python -m MODULE ARGS."""

import importlib.metadata
import runpy
import sys
from collections.abc import Sequence

from launch.errors import nearest, one_line, unread
from lm import interrupts, printing

COMMANDS = {
    "train": ("lm.train", "train a model from a config; resumes by itself"),
    "train-tokenizer": ("lm.train_tokenizer", "train a byte-pair tokenizer on text files"),
    "tokenize": ("lm.tokenize", "make the rows of a config's data once, before training"),
    "preview": ("lm.preview", "show what a model will see and be asked for, and check it"),
    "generate": ("lm.generate", "continue a prompt, or chat, with a model or a run"),
    "evaluate": ("lm.evaluate", "perplexity and bits per byte of a model on files"),
    "label": ("lm.label", "label new texts with a model that classifies"),
    "compare": ("lm.compare", "runs side by side: configs, last figures, curves on one page"),
    "fisher": ("lm.fisher", "what a model's weights matter to, for elastic weight consolidation"),
    "teacher-outputs": ("lm.teacher_outputs", "store a teacher's predictions, to distil it later"),
    "self-instruct": ("lm.self_instruct", "make instruct data with a model, from a few tasks"),
    "best-of-n": ("lm.best_of_n", "draw answers, reward them, and write the best as data"),
    "interpolate": ("lm.interpolate", "mix the weights of models, and measure the mixes"),
    "export": ("lm.export", "write a run as a Hugging Face directory"),
    "build": ("retrieval.build", "build a memory from passages"),
    "ask": ("retrieval.ask", "ask questions of a memory and a reader"),
    "chat": ("retrieval.chat", "chat with a model that stays loaded, with and without a memory"),
    "explore": (
        "retrieval.explore",
        "a memory in the browser: ask, look around, change, undo, travel in time",
    ),
    "build-datastore": (
        "retrieval.build_datastore",
        "keep a memory's tokens for kNN-LM, bring them up to date, tune the mixture",
    ),
    "search": ("retrieval.search", "find the passages of a memory nearest to a text"),
    "edit": ("retrieval.edit", "change or delete passages of a memory"),
    "evaluate-memory": (
        "retrieval.evaluate",
        "score answers with and without a memory: exact match, F1",
    ),
    "evaluate-text": (
        "retrieval.evaluate_text",
        "perplexity of texts with and without passages from a memory",
    ),
    "evaluate-search": (
        "retrieval.evaluate_search",
        "recall, nDCG, MAP and MRR of a memory's search against qrels",
    ),
    "mine-negatives": (
        "retrieval.mine_negatives",
        "hard negatives of questions, to train a retriever",
    ),
    "export-memory": ("retrieval.export", "write passages or the whole history as JSON lines"),
    "undo": ("retrieval.undo", "take back the latest change of a memory"),
    "log": ("retrieval.log", "show what happened to a memory, when, by whom and why"),
    "stats": ("retrieval.stats", "say what is in a memory and what it takes"),
    "verify": ("retrieval.verify", "check a memory against its checksums"),
    "audit": ("retrieval.audit", "try a deletion: what would a reader still know, and from where?"),
    "run": ("launch.run", "run a command on this machine, a TPU pod or SLURM"),
    "study": ("launch.study", "run a study: a chain of stages that resumes"),
}


def usage() -> str:
    """Text of openbook --help."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items())
    return (
        f"usage: openbook COMMAND ...\n\n{rows}\n\nopenbook COMMAND --help says more; openbook "
        "--version tells the version."
    )


@one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command in this process. Returns 0 after --help and --version, 2 if unknown."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("--help", "-h", "help"):
        try:
            print(usage(), flush=True)
        except BrokenPipeError:  # as in openbook --help | head -3
            unread()
        return 0
    if command in ("--version", "-V"):
        print(f"openbook {importlib.metadata.version('openbook')}")
        return 0
    if command not in COMMANDS:
        print(
            f"error: openbook has no command {command!r}{nearest(command, COMMANDS)}\n\n{usage()}",
            file=sys.stderr,
        )
        return 2
    module = COMMANDS[command][0]
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does: modules in the current directory are found
    sys.argv = [f"openbook {command}", *rest]
    interrupts.starting()
    printing.typed = f"openbook {command}"
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        printing.typed = ""
    return 0


if __name__ == "__main__":
    sys.exit(main())
