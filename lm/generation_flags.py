"""Command-line flags of python -m lm.generate, and the sampler that they select."""

import argparse
from typing import TYPE_CHECKING

from lm.printing import program

if TYPE_CHECKING:  # --help needs none of them
    from lm.data.templates import Template
    from lm.generation.beams import Beams
    from lm.generation.samplers import Greedy, Sample

FLAGS = {  # field of generation_config.json -> our flag and its default
    "temperature": ("temperature", 0.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "num_beams": ("beams", 1),
    "length_penalty": ("length_penalty", 1.0),
}
# without effect in generation_config.json unless do_sample
SAMPLED = {"temperature", "top_k", "top_p", "min_p"}
UNSUPPORTED = (
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "guidance_scale",
    "penalty_alpha",
    "diversity_penalty",
    "num_beam_groups",
)


def arguments(description: str, argv=None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=program("lm.generate"),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="run folder, model directory, hub id, .gguf file or PEFT adapter",
    )
    parser.add_argument(
        "--prompt", help="text to continue; without it, lines are read from standard input"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="remember the turns; without a template: the tokenizer's own",
    )
    parser.add_argument(
        "--template",
        help="spell prompts with this one (lm/data/templates), or 'none'; default: "
        "that of the run, if any",
    )
    parser.add_argument(
        "--system",
        help="system message before the prompt, or of the chat; needs a template or --chat",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be repeated",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) takes the most probable token"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="sample among the k best tokens; 0 = all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample among the best tokens of this total probability",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        help="sample among tokens at least this share as probable as the best",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1 makes tokens that were there before less likely",
    )
    parser.add_argument(
        "--beams",
        type=int,
        default=1,
        metavar="N",
        help="beam search over N continuations; printed when it is done",
    )
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="of beams: above 0 favours longer answers"
    )
    parser.add_argument(
        "--hook",
        action="append",
        default=[],
        metavar="MODULE:CLASS[,OPTION=VALUE...]",
        help="change the distribution of the next token (docs/write_a_hook.md); may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32"
    )
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="round weights to int8; activations are then bfloat16 unless --dtype says otherwise",
    )
    return parser.parse_args(argv)


def chosen_template(args, tokenizer) -> "Template | None":
    """Return the template of the flag or of the run, or None.

    Raises ConfigError (a ValueError).
    """
    from lm.data import templates
    from lm.weights.loading import kept_template, load_template

    if args.template and args.template != "none":
        date = templates.date_of(kept_template(args.model), args.template, tokenizer)
        return templates.get(args.template, tokenizer, **date)
    kept = None if args.template else load_template(args.model, tokenizer)
    if args.system and kept is None and not args.chat:
        raise ValueError(
            f"--system={args.system!r} would be ignored, as no template spells the prompt: "
            "add --chat or --template"
        )
    if args.chat and kept is None and not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {args.model} has no chat template: leave out --chat")
    return kept


def spelled(
    model, tokenizer, template: "Template | None", turns: list[dict[str, str]], chat: bool
) -> list[int]:
    """Encode a prompt: the system message and the last turn, or with `chat` all turns.

    Without a template the tokenizer's own chat template formats a chat. Earlier answers keep their
    reasoning where the chat template renders it, see `messages_of`.
    """
    from lm.data.encode.encoding import Encoder, prompt_ids
    from lm.data.records.examples import Record, Turn
    from lm.data.templates.jinja import rendered

    turns = (
        turns if chat else [turn for turn in turns[:-1] if turn["role"] == "system"] + turns[-1:]
    )
    if template is None:
        if chat:
            text = rendered(tokenizer, messages_of(tokenizer, turns))
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        return prompt_ids(
            tokenizer, turns[-1]["content"], encoder=bool(model.config.encoder_layers)
        )
    c = model.config
    messages = messages_of(tokenizer, turns) if template.fields else turns
    said = (Turn(m.pop("role"), m.pop("content"), fields=m) for m in map(dict, messages))
    record = Record(turns=tuple(said))
    return Encoder(tokenizer, c.decoder_start_token_id if c.encoder_layers else None).prompt(
        template.prompt(record)
    )


def messages_of(tokenizer, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the turns as messages for the chat template.

    If it reads `reasoning_content`, the reasoning of answers is moved there.
    """
    from lm.data.records.turns import without_reasoning
    from lm.data.templates.jinja import reads_reasoning

    reads, opened = reads_reasoning(tokenizer)
    found = []
    for turn in turns:
        if reads and turn["role"] == "assistant":
            reasoning, answer = without_reasoning(turn["content"], opened)
            turn = (
                turn | {"content": answer} | ({"reasoning_content": reasoning} if reasoning else {})
            )
        found.append(turn)
    return found


def unused_settings(args) -> str:
    """Describe the settings of generation_config.json that no flag applies; "" if none."""
    from lm.weights.loading import GENERATION, kept

    if any(getattr(args, name) != default for name, default in FLAGS.values()):
        return ""
    found = kept(args.model, GENERATION) or {}
    sampled, beams = bool(found.get("do_sample")), (found.get("num_beams") or 1) > 1
    read = {*FLAGS} - (set() if sampled else SAMPLED) - (set() if beams else {"length_penalty"})
    wanted = ({"temperature": 1.0} if sampled else {}) | {
        name: found[name] for name in FLAGS if found.get(name) is not None
    }
    flags = [
        f"--{f.replace('_', '-')}={wanted[name]}"
        for name, (f, default) in FLAGS.items()
        if wanted.get(name, default) != default and name in read
    ]
    others = [
        f"{name}={found[name]!r}"
        for name in UNSUPPORTED
        if found.get(name) not in (None, 0, 1.0, [], {})
    ]
    if not flags and not others:
        return ""
    said = [f"is not used unless you add {' '.join(flags)}"] * bool(flags) + [
        f"has settings that are not supported: {', '.join(others)}"
    ] * bool(others)
    return f"{GENERATION} of {args.model} {', and '.join(said)}"


def chosen(args) -> "Greedy | Sample | Beams":
    """Build the sampler of the flags. Raises ValueError for contradictory flags."""
    from lm.generation import Beams, Greedy, Sample

    options = dict(
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
    )
    if args.beams != 1:
        if args.temperature or Sample(**options) != Sample():
            raise ValueError(
                f"--beams={args.beams} chooses by itself: leave out --temperature, --top-*, "
                "--min-p and --repetition-penalty"
            )
        return Beams(args.beams, args.length_penalty)
    if args.length_penalty != 1.0:
        raise ValueError(f"--length-penalty={args.length_penalty} is for beam search: set --beams")
    if args.temperature != 0:
        return Sample(args.temperature, **options)
    if Sample(**options) != Sample(repetition_penalty=args.repetition_penalty):
        raise ValueError("--top-k, --top-p and --min-p are for sampling: set --temperature above 0")
    return Greedy(args.repetition_penalty)
