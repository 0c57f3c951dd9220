"""Cost of questions beside generating: python -m tests.benchmarks.asking --memory=runs/towns

Asks a memory three questions of different lengths with SmolLM2-135M-Instruct. Prints CPU seconds of
imports, of loading the reader with its tokenizer from GGUF, of each answer, and of what an answer
costs beyond `lm.generate`: search, prompt, citations. The first question also loads and traces the
encoder. Run it twice: the first run fills the compilation cache.
"""

import argparse
import importlib
import time

QUESTIONS = (
    "In which country is Bagheria?",
    "What is the capital of Peru?",
    "Which city of Japan do you know, and in which country are Oslo and Lima?",
)
LAZY = "retrieval", "scann", "transformers.models.auto.tokenization_auto"  # imported when needed


class Timed:
    """A module whose `generate` adds its CPU time to `seconds`."""

    def __init__(self, module):
        self.module, self.seconds = module, 0.0

    def __getattr__(self, name):
        return getattr(self.module, name)

    def generate(self, *args, **options):
        start = time.process_time()
        found = self.module.generate(*args, **options)
        self.seconds += time.process_time() - start
        return found


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--memory", required=True)
    options.add_argument("--reader", default="", help="default: SmolLM2 of lm.data.samples")
    args = options.parse_args(argv)
    start = time.process_time()
    for name in LAZY:
        importlib.import_module(name)
    import retrieval
    from lm import compiled
    from lm.data import samples
    from retrieval.reading import reader as reading

    compiled.keep_compiled()
    print(f"imports: {time.process_time() - start:.2f}")
    memory = retrieval.Memory.open(args.memory)
    source = args.reader or str(samples.fetch("smollm2"))
    start = time.process_time()
    door = reading.door_of(source, "")
    reader = retrieval.load_reader(source, door)
    print(f"reader: {time.process_time() - start:.2f}")
    timed = reading.lm = Timed(reading.lm)
    for question in QUESTIONS:
        timed.seconds, start = 0.0, time.process_time()
        text = retrieval.answer([question], memory, reader, door=door)[0].text
        spent = time.process_time() - start
        print(f"answer: {spent:.2f}, beyond lm.generate {spent - timed.seconds:.2f}: {text}")


if __name__ == "__main__":
    main()
