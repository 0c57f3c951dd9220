"""Export a model as a Hugging Face directory, and compare it with transformers if torch is there.

python -m lm.export --model=RUN_FOLDER --output=DIR
python -m lm.export --model=ADAPTER --output=DIR              # PEFT adapter merged into its base
python -m lm.export --model=model.gguf --output=DIR --dtype=bfloat16
python -m lm.export --model=LORA_RUN --output=DIR --adapter   # only the adapters, in PEFT's format
python -m lm.export --model=LORA_RUN --output=DIR --adapter --base=EXPORTED   # see --base
python -m lm.export --model=RUN_FOLDER --output=DIR --beside=generator   # a model trained beside it
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np

from lm import folders
from lm.batch import Batch
from lm.interrupts import entry_point
from lm.models import build, forward
from lm.models.config import DTYPES
from lm.phases import phase
from lm.printing import program
from lm.weights import WeightsError, to_hf
from lm.weights.loading import (
    GENERATION,
    is_run,
    kept,
    kept_template,
    load,
    load_tokenizer,
    load_weights,
    save_template,
)
from lm.xla_flags import avoid_wrong_fusion

PROMPT = "The capital of France is Paris, and the capital of Lithuania is"


def read(path: str, dtype: str | None):  # -> (model, params, tokenizer or None)
    if is_run(path):
        return load(path, dtype)
    model, params = load_weights(path, dtype)
    try:
        return model, params, load_tokenizer(path, model.config)
    except WeightsError as error:
        print(f"exporting without a tokenizer: {error}", file=sys.stderr)
        return model, params, None


def load_run_tokenizer(workdir: str):
    from lm.weights.runs.paths import local_copy, resolve
    from lm.weights.tokenizer import load_tokenizer

    with local_copy(resolve(workdir) / "model" / "tokenizer") as files:
        return load_tokenizer(str(files))


def base_for_peft(run: str, base: str) -> str:
    """Return the base that an exported adapter names: a hub id or an absolute path.

    Raises WeightsError, with advice, for a base that PEFT cannot load.
    """
    from lm.weights import peft

    kind = (
        "a training run"
        if is_run(base)
        else "a GGUF file"
        if base.endswith(".gguf")
        else "itself an adapter" * peft.is_adapter(base)
    )
    if kind:
        export = program("lm.export")
        raise WeightsError(
            f"the adapters of {run} adapt {base}, which is {kind}, and PEFT cannot load that: "
            f"write it as a model with `{export} --model={base} --output=DIR`, "
            "then give --base=DIR here"
        )
    return str(Path(base).resolve()) if Path(base).exists() else base


@phase("comparing the export with transformers on torch")
def largest_difference(model, params, tokenizer, directory: str) -> tuple[float, float]:
    """(maximum |ours - transformers|, maximum |value|) over the head's outputs.

    Over the hidden states for a model without a head.
    """
    import torch
    import transformers

    c = model.config
    ids = (
        tokenizer.encode(PROMPT) if tokenizer else [(7 * i + 3) % c.vocab_size for i in range(16)]
    )[: c.max_length]
    if c.encoder_layers and c.eos_token_ids:
        ids[-1] = c.eos_token_ids[0]  # transformers' classifiers read the label at this token
    decoder = [c.decoder_start_token_id or 0, *ids[:-1]]
    cls = getattr(
        transformers, json.loads((Path(directory) / "config.json").read_text())["architectures"][0]
    )
    inputs = {"input_ids": torch.tensor([ids])} | (
        {"decoder_input_ids": torch.tensor([decoder])} if c.encoder_layers else {}
    )
    out = cls.from_pretrained(directory, dtype=torch.float32).eval()(**inputs)
    batch = Batch.of([decoder], encoder_tokens=[ids]) if c.encoder_layers else Batch.of([ids])
    mine = forward(build(c.replace(dtype="float32")), params, batch)
    bare = c.head in ("none", "embedding")
    if c.head == "question_answering":
        theirs = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        theirs = out.last_hidden_state if bare else out.logits
    theirs = theirs.detach().numpy()
    return float(np.abs(np.asarray(mine.hidden if bare else mine.logits) - theirs).max()), float(
        np.abs(theirs).max()
    )


def _card(directory: str, source: str, config, adapter_of: str = "") -> None:
    from lm import card

    if not card.write(directory, source, config, adapter_of):
        print(
            f"{directory} has a {card.CARD} of its own, which stays: no model card was written",
            file=sys.stderr,
        )


@entry_point
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog=program("lm.export"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="run folder, model directory, hub id, .gguf file or PEFT adapter",
    )
    parser.add_argument(
        "--output", required=True, help="directory to write; one that holds a model is replaced"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the written weights; default: float32, or what the run trained in",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the low-rank adapters of a run alone, in PEFT's format",
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="with --adapter: directory or hub id of the base, for PEFT to load, "
        "if the base of the run is a run or a .gguf file",
    )
    parser.add_argument(
        "--beside",
        metavar="NAME",
        help="write a model that the run trained beside its own: generator, retriever",
    )
    args = parser.parse_args(argv)
    if args.beside and (args.adapter or args.dtype):
        parser.error("--beside writes a whole model as it was trained: leave the other options out")
    if args.base and not args.adapter:
        parser.error("--base is of adapters: give --adapter too")
    avoid_wrong_fusion("float32")  # in which the export is compared with transformers
    try:
        if Path(args.output).resolve() == Path(args.model).resolve():
            raise WeightsError(
                f"--output={args.output} is the model itself: give another directory"
            )
        may_hold = (
            ("an adapter",) if args.adapter else ("a model", "a file", "other files", "a tokenizer")
        )  # to_hf refuses the other kinds
        folders.refuse("output", args.output, may_hold, read=[folders.base_of(args.model)])
        if args.adapter:
            from lm.weights import peft
            from lm.weights.runs.weights import load_adapters

            model, adapters, lora, base = load_adapters(args.model)
            base = base_for_peft(args.model, args.base or base)
            peft.save(args.output, model, adapters, lora, base)
            load_run_tokenizer(args.model).save_pretrained(args.output)
            save_template(args.output, kept_template(args.model))
            _card(args.output, args.model, model.config, base)
            print(f"wrote {args.output}: adapters in PEFT's format")
            return 0
        if args.beside:
            from lm.weights.runs.weights import load_beside

            model, params, tokenizer = load_beside(args.model, args.beside)
            to_hf(model, params, args.output, tokenizer)
        else:
            model, params, tokenizer = read(args.model, args.dtype)
            template = kept_template(args.model)
            to_hf(model, params, args.output, tokenizer, generation=kept(args.model, GENERATION))
            save_template(args.output, template)
        _card(args.output, args.model, model.config)
        print(
            f"wrote {args.output}: {sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6:,.1f} "
            "MB of weights"
        )
        if not importlib.util.find_spec("torch"):
            print("torch is not installed: the export was not compared with transformers")
        else:
            difference, scale = largest_difference(model, params, tokenizer, args.output)
            print(
                f"largest difference from transformers on torch: {difference:.2e} (values up to "
                f"{scale:.3g})"
            )
            if not difference <= 1e-3 * max(scale, 1.0):
                raise WeightsError(
                    f"{args.output} does not compute what the model computes: do not use it, and "
                    "report this"
                )
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
