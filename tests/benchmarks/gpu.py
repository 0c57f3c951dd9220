"""Measure on a GPU, in at most eight minutes: training, decoding, and attention's exactness.

python -m tests.benchmarks.gpu --out=gpu.json
python -m tests.benchmarks.gpu --dry-run --only="attention"   # tiny shapes on a CPU

Each part is a process with a time limit of its own. What is left over when the time is up is listed
as not run. The file is written after every part. Exit status 1: a part failed, or attention is not
as exact as it should be.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.gpu_parts import PARTS
from tests.benchmarks.run import versions

SECONDS = 8 * 60
DRY_SECONDS = 600  # of a part on a CPU that may be busy
LEAST = 20  # seconds without which no part is begun


def measured(name: str, limit: float, dry: bool) -> dict:
    """Figures of a part, or {"error": why there are none}."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu", f"--part={name}"]
    env = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if dry else {})}
    start = time.monotonic()
    try:
        done = subprocess.run(
            command + ["--dry-run"] * dry, capture_output=True, text=True, timeout=limit, env=env
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:.0f} s"}
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - start}


def device(dry: bool) -> str:
    """Kind of the first device. Starts JAX, so it runs in a process of its own."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=',')"
    env = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if dry else {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-500:]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", action="append", metavar="PART", help="may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="the same code, tiny, on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(PARTS[args.part][1](args.dry_run)))
        return 0
    if unknown := [name for name in args.only or () if name not in PARTS]:
        parser.error(f"--only={unknown[0]!r}: no such part; one of {', '.join(PARTS)}")
    kind = device(args.dry_run)
    if not args.dry_run and not kind.startswith("gpu"):
        parser.error(f"JAX has no GPU here ({kind}): install jax[cuda13], or use --dry-run")
    found = {"device": kind, "versions": versions(), "dry_run": args.dry_run, "parts": {}}
    end = time.monotonic() + SECONDS
    for name in args.only or PARTS:
        left = DRY_SECONDS if args.dry_run else end - time.monotonic()
        limit = DRY_SECONDS if args.dry_run else min(PARTS[name][0], left)
        result = {"error": "not run: the time was up"}
        if left >= LEAST:
            result = measured(name, limit, args.dry_run)
        found["parts"][name] = result
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(result)[:300]}", flush=True)
    bad = [name for name, x in found["parts"].items() if "error" in x or x.get("failed")]
    if bad:
        print(f"failed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
