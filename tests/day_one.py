"""A user's first day through the entry points, on tiny models, checked by independent code.

python -m tests.day_one [--folder=DIR]

Each command runs in a process of its own. `make test` runs the same day in one process.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.cli import COMMANDS
from tests.retrieval.models import save_encoder

ROOT = Path(__file__).parent.parent
CAPITALS = {
    "Arland": "Bel",
    "Borland": "Cim",
    "Corland": "Dov",
    "Dorland": "Eps",
    "Erland": "Fyn",
    "Forland": "Gam",
}
USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SMALL = (
    "d_model=32",
    "n_layers=1",
    "n_heads=2",
    "n_kv_heads=2",
    "head_dim=16",
    "d_ff=64",
    "max_length=512",
)


def as_a_user(command: str, *arguments: str) -> str:
    """Run `openbook COMMAND ...` in a process of its own.

    Returns its standard output; raises AssertionError if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f"openbook {command} {' '.join(arguments)}: {done.returncode}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def in_this_process(command: str, *arguments: str) -> str:
    """Run the same entry point in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = importlib.import_module(COMMANDS[command][0]).main(list(arguments))
    assert code == 0, f"openbook {command} {' '.join(arguments)}: {code}\n{out.getvalue()}"
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Day:
    """How to run commands, and where their files go.

    `run(command, *arguments)` returns what an entry point printed; all files are below `folder`;
    a training run has `steps` steps.
    """

    folder: Path
    run: Callable[..., str]
    steps: int

    def path(self, *parts: str) -> str:
        return str(self.folder.joinpath(*parts))

    def train(self, config: str, name: str, *fields: str) -> str:
        shared = (
            f"steps={self.steps}",
            f"data.cache={self.path('cache')}",
            "log.tensorboard=False",
            "samples.prompts=()",
        )
        flags = (f"--config.{field}" for field in (*fields, *shared))
        self.run(
            "train", f"--config={ROOT / 'configs' / config}", f"--workdir={self.path(name)}", *flags
        )
        return self.path(name)


def torch_model(path: str, adapter: str | None = None):
    """Load (model, tokenizer) with transformers, and the adapter, if any, with PEFT."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    model = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path)


def continued(model, tokens: list[int], budget: int, ends: set[int]) -> list[int]:
    """Continue greedily without a cache. Stops before a token of `ends`."""
    import torch

    tokens, start = list(tokens), len(tokens)
    for _ in range(budget):
        with torch.no_grad():
            best = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if best in ends:
            break
        tokens.append(best)
    return tokens[start:]


def own_texts(day: Day) -> None:
    """Texts -> tokenizer -> train -> evaluate -> export -> generate."""
    import torch

    texts = [f"The capital of {country} is {city}." for country, city in CAPITALS.items()] * 20
    day.folder.joinpath("texts").mkdir()
    for number in range(2):
        day.folder.joinpath("texts", f"{number}.txt").write_text("\n\n".join(texts[number::2]))
    special = "--special_tokens=<|im_start|>,<|im_end|>"
    day.run(
        "train-tokenizer",
        f"--input={day.path('texts', '*.txt')}",
        "--vocab_size=320",
        special,
        f"--output={day.path('words')}",
    )
    model = [f"model.{field}" for field in SMALL]
    data = (
        f"tokenizer={day.path('words')}",
        f"data.files={day.path('texts', '*.txt')}",
        "task.separator=\\n\\n",
    )
    run = day.train("tiny.py", "run", *data, *model, "batch_size=8", "length=64")
    day.run("export", f"--model={run}", f"--output={day.path('base')}")
    theirs, tokenizer = torch_model(day.path("base"))
    end = tokenizer.eos_token_id
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(plain(texts[0])) == texts[0]
    # The exported tokenizer begins a text as training begins a document.
    assert tokenizer.encode(texts[0]) == [
        end,
        *plain(texts[0]),
    ]
    total = count = 0.0
    for text in CAPITALS:
        tokens = [end, *plain(f"The capital of {text} is {CAPITALS[text]}."), end]
        with torch.no_grad():
            loss = theirs(torch.tensor([tokens]), labels=torch.tensor([tokens])).loss
        total, count = total + float(loss) * (len(tokens) - 1), count + len(tokens) - 1
    day.folder.joinpath("six.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts[: len(CAPITALS)])
    )
    found = json.loads(
        day.run("evaluate", f"--model={run}", f"--data={day.path('six.jsonl')}", "--json")
    )
    assert found["tokens"] == count, (found["tokens"], count)
    assert abs(found["loss"] - total / count) < 1e-4, (found["loss"], total / count)

    said = day.run(
        "generate", f"--model={run}", "--prompt=The capital of Arland is", "--max-new-tokens=8"
    )
    expected = continued(theirs, [end, *plain("The capital of Arland is")], 8, {end})
    assert said.strip() == tokenizer.decode(expected).strip(), (said, tokenizer.decode(expected))


def chat(day: Day) -> None:
    """Chat file -> LoRA -> evaluate -> export; transformers and PEFT load the result."""
    import torch

    turn = lambda country, city: [
        {"role": "user", "content": f"Capital of {country}?"},
        {"role": "assistant", "content": city},
    ]
    rows = [
        json.dumps({"messages": turn(country, city)}) + "\n" for country, city in CAPITALS.items()
    ]
    day.folder.joinpath("chat.jsonl").write_text("".join(rows))
    run = day.train(
        "lora.py",
        "lora",
        f"init_from={day.path('base')}",
        "task.template=chatml",
        f"data.files={day.path('chat.jsonl')}",
        "length=64",
        "optimizer.learning_rate=1e-2",
    )
    answers = day.path("answers.jsonl")
    flags = (
        f"--examples={day.path('chat.jsonl')}",
        "--max-new-tokens=12",
        f"--answers={answers}",
        "--json",
    )
    found = json.loads(day.run("evaluate", f"--model={run}", *flags))
    day.run("export", f"--model={run}", f"--output={day.path('adapter')}", "--adapter")
    day.run("export", f"--model={run}", f"--output={day.path('merged')}")

    base = json.loads(Path(day.path("adapter", "adapter_config.json")).read_text())[
        "base_model_name_or_path"
    ]
    adapted, tokenizer = torch_model(base, day.path("adapter"))
    merged, _ = torch_model(day.path("merged"))
    ends = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id}
    right = []
    for row, (country, city) in zip(
        Path(answers).read_text().splitlines(), CAPITALS.items(), strict=True
    ):
        prompt = tokenizer.encode(USER.format(f"Capital of {country}?"))
        said = tokenizer.decode(continued(adapted, prompt, 12, ends), skip_special_tokens=True)
        assert json.loads(row)["answer"] == said.strip(), (row, said)
        right.append(said.strip().lower() == city.lower())
        with torch.no_grad():
            ours, alone = (
                merged(torch.tensor([prompt])).logits,
                adapted(torch.tensor([prompt])).logits,
            )
        assert float((ours - alone).abs().max()) < 1e-3
    assert abs(found["all"]["scores"]["exact_match"] - 100 * np.mean(right)) < 1e-6


def notes(day: Day) -> None:
    """Folder -> memory -> search -> ask -> edit -> undo."""
    day.folder.joinpath("notes").mkdir()
    written = {
        country: f"{country} is a country. Its capital is {city}."
        for country, city in CAPITALS.items()
    }
    for country, text in written.items():
        day.folder.joinpath("notes", f"{country}.md").write_text(f"# {country}\n\n{text}\n")
    model, tokenizer = save_encoder(day.path("encoder"))
    memory = f"--memory={day.path('memory')}"
    day.run("build", memory, f"--encoder={day.path('encoder')}", f"--input={day.path('notes')}")

    def hits(question: str) -> list[dict]:
        return json.loads(day.run("search", memory, "--json", "-k=6", question))["hits"]

    def nearest(question: str, passages: dict[str, str]) -> list[str]:
        vectors = embedded(model, tokenizer, [question, *passages.values()])
        return [list(passages)[i] for i in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")]

    question = "What is the capital of Corland?"
    first = hits(question)
    passages = {
        hit["id"]: f"{hit['title']}\n{hit['text']}" if hit["title"] else hit["text"]
        for hit in first
    }
    assert sorted(hit["text"] for hit in first) == sorted(written.values())
    assert [hit["id"] for hit in first] == nearest(question, passages)

    asked = ("ask", memory, f"--reader={day.path('merged')}", "--json", "-k=2", question)
    answer = json.loads(day.run(*asked))
    assert {hit["id"] for hit in answer["citations"]} <= {
        hit["id"] for hit in first[:2]
    } and answer["citations"]

    target = first[0]["id"]
    day.run("edit", memory, f"--edit={target}", "--text=The capital moved to Zed.")
    edited = {hit["id"]: hit["text"] for hit in hits(question)}
    assert edited[target] == "The capital moved to Zed." and len(edited) == len(CAPITALS)
    assert all(edited[hit["id"]] == hit["text"] for hit in first[1:])
    day.run("undo", memory)
    strip = lambda found: [
        {name: value for name, value in hit.items() if name != "version"} for hit in found
    ]
    assert strip(hits(question)) == strip(first)
    assert json.loads(day.run(*asked))["text"] == answer["text"]
    day.run("verify", memory)


def embedded(model, tokenizer, texts: list[str]) -> np.ndarray:
    """Unit vectors float32 [N, D] of texts: the mean of BERT's last hidden states."""
    import torch

    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


PARTS = (own_texts, chat, notes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.day_one",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="an empty or new folder to work in and keep (default: a temporary one)",
    )
    folder = parser.parse_args(argv).folder
    with tempfile.TemporaryDirectory() as temporary:
        day = Day((folder or Path(temporary)).resolve(), as_a_user, steps=80)
        day.folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            began = time.monotonic()
            part(day)
            print(
                f"{part.__name__:<10} {time.monotonic() - began:5.0f} s  {part.__doc__}", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
