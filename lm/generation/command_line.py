"""The flags of python -m lm.generate, and the sampler that they ask for."""

import argparse

from lm.data import templates
from lm.data.encoding import Encoder, prompt_ids
from lm.data.examples import Record, Turn
from lm.data.templates import Template
from lm.data.templates.jinja import rendered
from lm.generation.beams import Beams
from lm.generation.samplers import Greedy, Sample
from lm.printing import program


def arguments(description: str, argv=None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        prog=program("lm.generate"), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="run folder, model directory, hub id or .gguf file")
    parser.add_argument("--prompt", help="text to continue; without it, lines are read from standard input")
    parser.add_argument("--chat", action="store_true", help="remember the turns; without a template: the tokenizer's own")
    parser.add_argument("--template", help="spell prompts with this one (lm/data/templates), or 'none'; default: that of the run, if any")
    parser.add_argument("--system", help="system message of the chat")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; may be repeated")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the most probable token")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k best tokens; 0 = all")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the best tokens of this total probability")
    parser.add_argument("--min-p", type=float, default=0.0, help="sample among tokens at least this share as probable as the best")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 makes tokens that were there before less likely")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beam search over N continuations; printed when it is done")
    parser.add_argument("--length-penalty", type=float, default=1.0, help="of beams: above 0 favours longer answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32")
    return parser.parse_args(argv)


def chosen_template(args, tokenizer) -> Template | None:
    """The template that spells prompts: that of the flag, or of the run; None without one. Raises ConfigError (a ValueError)."""
    from lm.loading import kept_template, load_template

    if args.template:
        date = templates.date_of(kept_template(args.model), args.template, tokenizer)
        return None if args.template == "none" else templates.get(args.template, tokenizer, **date)
    kept = load_template(args.model, tokenizer)
    if args.chat and kept is None and not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {args.model} has no chat template: leave out --chat")
    return kept


def spelled(model, tokenizer, template: Template | None, turns: list[dict[str, str]], chat: bool) -> list[int]:
    """The tokens of a prompt: the last turn, or all of a chat. Without a template a chat is spelled by the tokenizer's own."""
    turns = turns if chat else turns[-1:]
    if template is None:
        if chat:
            return tokenizer(rendered(tokenizer, turns), add_special_tokens=False)["input_ids"]
        return prompt_ids(tokenizer, turns[-1]["content"], encoder=bool(model.config.encoder_layers))
    c = model.config
    record = Record(turns=tuple(Turn(turn["role"], turn["content"]) for turn in turns))
    return Encoder(tokenizer, c.decoder_start_token_id if c.encoder_layers else None).prompt(template.prompt(record))


def chosen(args) -> Greedy | Sample | Beams:
    """The sampler that the flags ask for. Raises ValueError when they contradict each other."""
    options = dict(top_k=args.top_k, top_p=args.top_p, min_p=args.min_p, repetition_penalty=args.repetition_penalty)
    if args.beams != 1:
        if args.temperature or Sample(**options) != Sample():
            raise ValueError(f"--beams={args.beams} chooses by itself: leave out --temperature, --top-*, --min-p and --repetition-penalty")
        return Beams(args.beams, args.length_penalty)
    if args.length_penalty != 1.0:
        raise ValueError(f"--length-penalty={args.length_penalty} is for beam search: set --beams")
    if args.temperature != 0:
        return Sample(args.temperature, **options)
    if Sample(**options) != Sample(repetition_penalty=args.repetition_penalty):
        raise ValueError("--top-k, --top-p and --min-p are for sampling: set --temperature above 0")
    return Greedy(args.repetition_penalty)
