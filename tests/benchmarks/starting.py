"""Time and memory until a process has written its first token."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.models import Sizes

PROMPT = " ".join(f"w{i}" for i in range(10, 26))  # 16 tokens
OURS = ["--template=none", "--max-new-tokens=1"]
# torch is not among Openbook's dependencies, but transformers imports it where it is installed.
WITHOUT_TORCH = """
import importlib.machinery, runpy
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
runpy.run_module("lm.generate", run_name="__main__", alter_sys=True)
"""
THEIRS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = (x.partition("=")[2] for x in sys.argv[1:])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
given = tokenizer(prompt, return_tensors="pt")
found = model.generate(**given, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(found[0, -1:]))
"""


def started(command: list[str], cache: Path) -> dict:
    """Run a Python program. Its output, seconds, CPU seconds and peak MB.

    Raises RuntimeError, with what it printed, if it fails.
    """
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=out, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[:2]} ended ({process.returncode}): {log.read()[-1500:]}")
        return {
            "out": out.read().strip(),
            "wall": wall,
            "cpu": used.ru_utime + used.ru_stime,
            "mb": used.ru_maxrss / 1024,
        }


def starting(quick: bool = False) -> dict:
    """First token of `lm.generate` and of transformers, in processes of their own, in turns."""
    from statistics import median

    sizes = Sizes("gpt2-124m", 1, 16, 1, size="tiny" if quick else "")
    with tempfile.TemporaryDirectory() as folder:
        model, cache = Path(folder) / "model", Path(folder) / "cache"
        peers.save(sizes, str(model))
        given = [f"--model={model}", f"--prompt={PROMPT}"]
        sides = {
            "Openbook": ["-m", "lm.generate", *OURS],
            "Openbook, torch not installed": ["-c", WITHOUT_TORCH, *OURS],
            "transformers": ["-c", THEIRS],
        }
        run = lambda: {side: started([*how, *given], cache) for side, how in sides.items()}
        first = run()  # fills the cache
        tokens = {side: one["out"] for side, one in first.items()}
        if len({*tokens.values()}) != 1:
            raise RuntimeError(f"the first tokens differ: {tokens}")
        turns = [first] if quick else [run() for _ in range(3)]
    rows = []
    for side in sides:
        cpu, wall, mb = ([turn[side][name] for turn in turns] for name in ("cpu", "wall", "mb"))
        ratios = [turn["transformers"]["cpu"] / turn[side]["cpu"] for turn in turns]
        rows.append(
            [
                side,
                f"{median(cpu):.2f}",
                f"{min(cpu):.2f} to {max(cpu):.2f}",
                f"{min(wall):.2f}",
                round(median(mb)),
                f"{median(ratios):.2f}",
            ]
        )
    columns = [
        "first token",
        "CPU s, median",
        "min to max",
        "least s",
        "peak MB",
        "transformers ÷ it",
    ]
    note = (
        "GPT-2 124M from a directory, float32, 16 tokens read, one core, compiled programs cached"
    )
    return {"columns": columns, "rows": rows, "note": note}
