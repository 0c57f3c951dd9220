"""Continues a prompt, or holds a chat, streaming to the terminal.

python -m lm.generate --model=PATH_OR_HUB_ID_OR_RUN --prompt="The capital of France is"
python -m lm.generate --model=model.gguf --chat                    # interactive; an empty line ends it
"""

import argparse
import sys

from lm.generation import Greedy, Sample, stream
from lm.loading import load
from lm.models import separate


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lm.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="run folder, model directory, hub id or .gguf file")
    parser.add_argument("--prompt", help="text to continue; without it, lines are read from standard input")
    parser.add_argument("--chat", action="store_true", help="wrap each prompt in the tokenizer's chat template and remember the turns")
    parser.add_argument("--system", help="system message of the chat")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the most probable token")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k best tokens; 0 = all")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the best tokens of this total probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32")
    return parser.parse_args(argv)


def reply(model, params, tokenizer, ids, args, sampler) -> str:
    """Streams the continuation of `ids` to standard output and returns its text."""
    tokens, shown = [], ""
    for token in stream(model, params, ids, args.max_new_tokens, sampler, seed=args.seed):
        tokens.append(token)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(tokens, skip_special_tokens=True)[len(shown) :])
    return shown


def main(argv=None) -> int:
    args = arguments(argv)
    try:
        sampler = Greedy() if args.temperature == 0 else Sample(args.temperature, args.top_k, args.top_p)
        model, params, tokenizer = load(args.model, args.dtype)
        if args.chat and not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {args.model} has no chat template: leave out --chat")
        model, params = separate(model, params)
        turns = [{"role": "system", "content": args.system}] if args.system else []
        for line in [args.prompt] if args.prompt is not None else prompts():
            turns.append({"role": "user", "content": line})
            ids = (
                tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) if args.chat else tokenizer.encode(line)
            )
            turns.append({"role": "assistant", "content": reply(model, params, tokenizer, ids, args, sampler)})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def prompts():
    """Lines of standard input; on a terminal with a prompt mark, until an empty line."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line and sys.stdin.isatty():
            return
        if line:
            yield line


if __name__ == "__main__":
    sys.exit(main())
