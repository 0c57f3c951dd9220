"""Command-line flags of python -m lm.evaluate."""

import argparse

from lm.data import templates
from lm.data.records import reading as records
from lm.evaluation import generation, scores, superni, words
from lm.printing import program

LEAST = {
    "batch_size": 1,
    "max_new_tokens": 1,
    "beams": 1,
    "max_rows": 0,
    "cap": 0,
    "max_examples": 0,
    "length": 0,
    "stride": 0,
}
FIXED = {  # flags of --examples that --superni does not take, and their defaults
    "format": "auto",
    "template": "",
    "template_options": "{}",
    "force_template": False,
    "metrics": generation.METRICS,
    "hold_out": "",
    "max_examples": 0,
    "prompt_field": "",
    "completion_field": "",
    "beams": 1,
    "length_penalty": 1.0,
}

# tasks with labels, for the help; lm.tasks would take a second to import
LABELS = ("classification", "token_classification", "question_answering", "contrastive")


def arguments(description: str, argv=None) -> argparse.Namespace:
    """Parse the command line. Raises SystemExit, like argparse."""
    parser = argparse.ArgumentParser(
        prog=program("lm.evaluate"),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="", help="run folder, model directory, hub id or .gguf file"
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
        "--superni",
        metavar="LIST",
        help="Super-NaturalInstructions, scored as in its paper: a split's list of tasks, such as "
        "splits/default/test_tasks.txt, or a folder; without --model only the baselines",
    )
    parser.add_argument(
        "--evals",
        nargs="?",
        const="all",
        metavar="NAMES",
        help="a run's own evaluations (eval, samples and evals of its config), comma-separated; "
        "default: all",
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
        "--quantize",
        choices=("int8",),
        help="round weights to int8; activations are then bfloat16 unless --dtype says otherwise",
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
        "--task", default="", help=f"score labels instead of text: {', '.join(LABELS)}"
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
    asked = parser.add_argument_group(
        "with --examples; with --superni --encodings, --rouge-tokenizer, --max-new-tokens, --cap "
        "and --answers"
    )
    asked.add_argument(
        "--encodings",
        default="",
        metavar="NAMES",
        help="prompts of --superni, comma-separated: def (the task's definition), def-pos (and two "
        "positive examples); default: both",
    )
    asked.add_argument(
        "--format", default="auto", help=f"auto (default), {', '.join(records.FORMATS)}"
    )
    asked.add_argument(
        "--prompt_field",
        "--prompt-field",
        default="",
        help="of format completion: the field of the prompt (default: a run's own, or prompt)",
    )
    asked.add_argument(
        "--completion_field",
        "--completion-field",
        default="",
        help="of format completion: the field of the answer (default: a run's own, or completion)",
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
        help=f"comma-separated, of {', '.join((*scores.METRICS, *scores.OF_CORPUS))}",
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
        "--beams",
        type=int,
        default=1,
        metavar="N",
        help="search with N beams (default 1: greedy)",
    )
    asked.add_argument(
        "--length_penalty",
        "--length-penalty",
        type=float,
        default=1.0,
        help="of beams: above 0 favours longer answers (default 1)",
    )
    asked.add_argument(
        "--cap",
        type=int,
        metavar="N",
        help="only the first N records of each task; 0 = all (default 0, with --superni "
        f"{superni.PER_TASK})",
    )
    asked.add_argument(
        "--hold_out",
        "--hold-out",
        default="",
        help="only these tasks: names or globs, or a share, as task.hold_out",
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
        "--answers",
        metavar="FILE",
        help="write every prompt, answer, reference and score as JSONL; --superni reuses the "
        "answers of the same model in it",
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for a number that is too small, and for flags that contradict each other."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{_flag(name)}={value}: expected at least {least}")
    if sum(map(bool, (args.data, args.examples, args.superni, args.evals))) != 1:
        raise ValueError(
            "give one of --data=FILES (text), --examples=FILES (instruct data), --superni=LIST "
            "(Super-NaturalInstructions) and --evals (a run's own), and not both"
        )
    if not args.model and not args.superni:
        raise ValueError("give --model: a run folder, model directory, hub id or .gguf file")
    if not args.model and (args.encodings or args.answers):
        raise ValueError("--encodings and --answers are of a model: give --model too")
    if args.length_penalty != 1.0 and args.beams == 1:
        raise ValueError(f"--length-penalty={args.length_penalty} is of a search: give --beams too")
    if args.encodings and not args.superni:
        raise ValueError("--encodings is of --superni; --examples has --template-options")
    if args.superni:
        for name, usual in FIXED.items():
            if getattr(args, name) != usual:
                raise ValueError(
                    f"{_flag(name)} is of --examples: the evaluation of Super-NaturalInstructions "
                    "fixes it; leave it out"
                )
    if (args.predictions or args.label_field or args.pair_field or args.stride) and not args.task:
        raise ValueError(
            "--predictions, --label-field, --pair-field and --stride are of labelled data: "
            "give --task too"
        )
    if args.task and not args.data:
        raise ValueError(f"--task={args.task} needs --data=FILES, the labelled data")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
