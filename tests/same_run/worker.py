"""Run jobs in one checkout: python -P worker.py SPEC.json, with PYTHONPATH of the checkout.

This file imports nothing from its own package, since `tests` may be the other checkout's. It uses
the checkout as a user would: through the `main(argv)` of its entry points and through lm.load.
Results are JSON files. All output goes to one log per job.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import time
import traceback

TIMES = ("seconds", "tokens_per_second", "mfu")  # metrics that are not compared
LEADING = ("loss", "gradient_norm", "weight")  # metrics that are compared first
QUERIES = ("Where does the dog sleep?", "bread", "Is there snow on the mountain?")
PROGRAM = "StableHLO of the training step"


class Failed(Exception):
    """Command of a job that ended with a non-zero exit code."""


def call(module: str, *argv: str) -> None:
    """Run `python -m module` with these arguments in this process. Raise Failed on an error."""
    print(f"$ python -m {module} {' '.join(argv)}", flush=True)
    code = importlib.import_module(module).main(list(argv))
    sys.stdout.flush()
    if code:
        raise Failed(f"{module} ended with exit code {code}")


def printed(module: str, *argv: str) -> list[dict]:
    """Return the JSON objects printed by `call`, one per line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        call(module, *argv)
    print(out.getvalue(), flush=True)
    return [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]


def train(job: dict, spec: dict) -> dict:
    folder = pathlib.Path(spec["folder"])
    run = folder / "runs" / job["name"]
    config = job["config"]
    file = pathlib.Path(__file__).parent if "/" not in config else pathlib.Path(spec["checkout"])
    start = {"init_from": folder / "runs" / job["start"]} if job["start"] else {}
    changes = {"data.cache": folder / "data"} | start | job["changes"]
    arguments = [f"--config={file / config}:{job['variant']}", f"--workdir={run}"]
    arguments += [f"--config.{name}={value}" for name, value in changes.items()]
    if job["first"]:
        call("lm.train", *arguments, f"--config.steps={job['first']}")
    programs = folder / "programs" / job["name"]
    with dumped(programs) if job["program"] else contextlib.nullcontext():
        call("lm.train", *arguments)
    return metrics(run) | parameters(run) | (program(programs) if job["program"] else {})


def metrics(run: pathlib.Path) -> dict:
    """Read the values of metrics.jsonl, and samples.md if it exists."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        names = [*LEADING, *(name for name in row if name not in (*LEADING, *TIMES, "step"))]
        found |= {f"step {row['step']} {name}": row[name] for name in names if name in row}
    samples = run / "samples.md"
    return found | ({"samples.md": samples.read_text()} if samples.exists() else {})


def parameters(run: pathlib.Path) -> dict:
    """Digests of the newest checkpoint's parameters: one of all, then one of each."""
    lm = importlib.import_module("lm")
    return digests(dict(flat(lm.load(str(run))[1])), "parameters")


def flat(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def digests(arrays: dict, what: str) -> dict:
    """Compute sha256 over sorted names, dtypes, shapes and bytes: of all arrays, then of each."""
    import numpy as np

    total, found = hashlib.sha256(), {}
    for name in sorted(arrays):
        array = np.ascontiguousarray(np.asarray(arrays[name]))
        said = f"{array.dtype} {list(array.shape)}"
        digest = hashlib.sha256(f"{name} {said}\n".encode() + array.tobytes()).hexdigest()
        total.update(digest.encode())
        found[f"{what} {name}"] = f"{said} {digest[:16]}"
    return {what: total.hexdigest()} | found


@contextlib.contextmanager
def dumped(folder: pathlib.Path):
    """Make JAX write every program compiled within the block to `folder`, as StableHLO."""
    import jax

    jax.config.update("jax_dump_ir_to", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_dump_ir_to", "")


def program(folder: pathlib.Path) -> dict:
    """Digest of the largest program, the training step. Its text is kept as FOLDER.mlir."""
    largest = max(folder.glob("*.mlir"), key=lambda file: file.stat().st_size)
    text = normalised(largest.read_text())
    folder.with_suffix(".mlir").write_text(text)
    shutil.rmtree(folder)
    return {PROGRAM: hashlib.sha256(text.encode()).hexdigest()}


def normalised(text: str) -> str:
    """Remove from StableHLO what does not affect the computation.

    That is locations and the names of arguments, results and the module. Functions are numbered.
    """
    text = re.sub(r"^#loc.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" loc\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\)", "", text)
    text = re.sub(r"(?:, )?jax\.(?:result|arg)_info = \"[^\"]*\"(?:, )?", "", text)
    text = re.sub(r"^module @\S+", "module", text, flags=re.MULTILINE)
    names = dict.fromkeys(re.findall(r"func\.func (?:public |private )?@([\w.$-]+)", text))
    numbers = {name: f"@f{number}" for number, name in enumerate(names)}
    return re.sub(r"@([\w.$-]+)", lambda found: numbers.get(found[1], found[0]), text)


def memory(job: dict, spec: dict) -> dict:
    """Build a memory, edit a passage and search both versions."""
    folder = pathlib.Path(spec["folder"])
    place, encoder = f"--memory={folder / 'memory'}", f"--encoder={folder / 'encoder'}"
    source = folder / "runs" / job["needs"][0]
    call("lm.export", f"--model={source}", f"--output={folder / 'encoder'}")
    files = ("license.txt", "configs/examples/topics.jsonl")
    call("retrieval.build", place, encoder, "--text-field=text", "--input", *files)
    hit = printed("retrieval.search", place, "--json", QUERIES[0])[0]["hits"][0]
    call("retrieval.edit", place, f"--edit={hit['id']}", "--text=The dog sleeps in its basket.")
    return search(job, spec)


def search(job: dict, spec: dict) -> dict:
    """Search the memory that `memory` made, or the other checkout's."""
    made = pathlib.Path(spec["made"] if job["of_other"] else spec["folder"])
    options = [f"--memory={made / 'memory'}", f"--encoder={made / 'encoder'}", "--json"]
    call("retrieval.verify", *options[:1])
    found = {}
    for mode in ("dense", "lexical", "hybrid"):
        for past in ((), ("--as-of=2",)):
            answers = printed("retrieval.search", *options, f"--mode={mode}", *past, *QUERIES)
            for answer in answers:
                for rank, hit in enumerate(answer["hits"], 1):
                    where = " ".join((mode, *past, repr(answer["query"]), f"hit {rank}"))
                    found[where] = [hit["id"], hit["score"], hit["text"]]
    return found


def runs(job: dict, spec: dict) -> dict:
    """Evaluate and export this checkout's runs, or the other's."""
    import safetensors.numpy

    folder = pathlib.Path(spec["folder"])
    made = pathlib.Path(spec["made"] if job["of_other"] else folder)
    found = {}
    for name, asked in job["runs"].items():
        run, export = made / "runs" / name, folder / "exports" / name
        numbers = export.with_suffix(".json")
        call("lm.evaluate", f"--model={run}", *asked, f"--json={numbers}")
        evaluated = dict(flat(json.loads(numbers.read_text())))
        found |= {f"{name} {key}": value for key, value in evaluated.items() if key != "model"}
        call("lm.export", f"--model={run}", f"--output={export}")
        arrays = safetensors.numpy.load_file(export / "model.safetensors")
        found |= digests(arrays, f"{name} exported")
    return found


KINDS = {"train": train, "memory": memory, "search": search, "runs": runs}


def done(job: dict, spec: dict) -> dict:
    begun = time.monotonic()
    try:
        result = {"values": KINDS[job["kind"]](job, spec)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def main(path: str) -> None:
    spec = json.loads(pathlib.Path(path).read_text())
    folder = pathlib.Path(spec["folder"])
    for job in spec["jobs"]:
        log = os.open(folder / "logs" / f"{job['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        result = folder / "results" / f"{job['name']}.json"
        new = result.with_suffix(".new")
        new.write_text(json.dumps(done(job, spec)))
        sys.stdout.flush()
        new.replace(result)


if __name__ == "__main__":
    main(sys.argv[1])
