"""Continue a prompt or hold a chat, streaming to the terminal.

With an encoder-decoder, the encoder reads the prompt. For a run on instruct data, prompts are
rendered by its template; --template names another, or none.

python -m lm.generate --model=PATH_OR_HUB_ID_OR_RUN --prompt="The capital of France is"
python -m lm.generate --model=model.gguf --chat               # interactive; an empty line ends it
"""

import itertools
import sys

from lm.compiled import keep_compiled
from lm.generation_flags import arguments, chosen, chosen_template, spelled, unused_settings
from lm.interrupts import entry_point
from lm.phases import phase
from lm.printing import piped


@entry_point
def main(argv=None) -> int:
    args = arguments(__doc__, argv)
    keep_compiled()
    from lm.generation import stream_text
    from lm.generation.hooks import named
    from lm.models import for_decoding
    from lm.weights.loading import load

    try:
        sampler = chosen(args)
        hooks = tuple(map(named, args.hook))
        model, params, tokenizer = load(args.model, args.dtype, args.quantize)
        template = chosen_template(args, tokenizer)
        if note := unused_settings(args):
            print(note, file=sys.stderr)
        stops = args.stop if template is None else [*args.stop, template.stop]
        model, params = for_decoding(model, params, rows=1)
        turns = [{"role": "system", "content": args.system}] if args.system else []
        with piped():
            for line in [args.prompt] if args.prompt is not None else prompts():
                turns.append({"role": "user", "content": line})
                ids = spelled(model, tokenizer, template, turns, args.chat)
                answer = ""
                pieces = stream_text(
                    model,
                    params,
                    tokenizer,
                    ids,
                    args.max_new_tokens,
                    sampler,
                    stop_strings=stops,
                    seed=args.seed,
                    hooks=hooks,
                )
                with phase("reading the prompt; what is new is compiled first"):
                    first = next(pieces, "")
                for piece in itertools.chain([first], pieces):
                    print(piece, end="", flush=True)
                    answer += piece
                print()
                turns.append({"role": "assistant", "content": answer})
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def prompts():
    """Yield lines of standard input; on a terminal with a prompt, until an empty line."""
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
