"""Preview the tokens and losses of a training run, with checks for mistakes.

python -m lm.preview --config=FILE.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]
    [--rows=N] [--json] [--html[=FILE]]

  --rows=N    rows to show (default 3) of the first batch; the checks use all of it
  --html      write a page to FILE, or to preview.html in the run folder
  --json      print JSON

The batch is the first one that lm.train reads. Tokens with a loss are green and underlined;
documents are separated by |. Exit codes: 0 success; 1 a check failed; 2 an error in config or data.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    from lm.data.preview import rendering
    from lm.data.read.sources import DataError
    from lm.models.config import ConfigError
    from lm.printing import piped
    from lm.training.checkpoints import CheckpointError
    from lm.weights import WeightsError

    own = [a for a in argv if a.split("=")[0] in ("--rows", "--html", "--json")]
    rest = [a for a in argv if a not in own]
    options = {a.split("=")[0]: a.partition("=")[2] for a in own}
    try:
        shown = int(options.get("--rows") or 3)
        with tempfile.TemporaryDirectory() as scratch:
            given = next((a.partition("=")[2] for a in rest if a.startswith("--workdir=")), "")
            what, rows, checks = _read([*rest, *([] if given else [f"--workdir={scratch}"])])
        if "--html" in options:
            file = pathlib.Path(options["--html"] or pathlib.Path(given or ".") / "preview.html")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rendering.page(what, rows[:shown], checks))
            print(file, file=sys.stderr)
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with piped():
        if "--json" in options:
            print(json.dumps(rendering.record(what, rows[:shown], checks)))
        else:
            rendering.show(rows[:shown], checks)
    return int(any(check.ok is False for check in checks))


def _read(argv: list[str]):
    """(description of the config, rows, checks) for a command line."""
    import jax

    from lm.data import templates
    from lm.data.batches import TrainBatches
    from lm.data.mixtures import Mixture
    from lm.data.preview import preview
    from lm.distributed import sharding
    from lm.training import command_line, setup
    from lm.weights.runs import paths

    config, workdir = command_line.parse(argv)
    run = setup.prepare(config, paths.resolve(workdir))
    packed, held_out = setup.training_data(config, run), setup.evaluation_data(config, run)
    if run.tokenizer is None:
        raise ValueError(
            "data.synthetic_rows without a tokenizer has no text to show; set data.files and "
            "tokenizer"
        )
    source = setup.train_source(config, run, packed)
    ahead = isinstance(source, TrainBatches)  # others read the state
    with sharding.activate(run.mesh, run.activations):
        state = None if ahead else run.fresh_state(config.seed)
        sample: Any = jax.device_get(source.next(state))
    task, c = run.task, run.model.config
    shifted = not task.makes_head and (c.causal or bool(c.encoder_layers))
    stops = set() if run.template is None else {templates.stop_id(run.template, run.tokenizer)}
    sources = (
        {part.name: part.packed for part in packed.parts}
        if isinstance(packed, Mixture)
        else {"training": packed}
    )
    checks = preview.checks(
        sample, sources, held_out, run.tokenizer, shifted=shifted, stops=stops, task=task
    )
    if run.template is not None:
        checks.insert(
            0,
            preview.Check(
                "template",
                None,
                f"{run.template.name} {dict(run.template.options)} {run.template.fingerprint}",
            ),
        )
    what = (
        f"{next(a.partition('=')[2] for a in argv if a.startswith('--config='))}, task {task.name}"
    )
    return (
        what,
        preview.rows(sample, run.tokenizer, shifted=shifted, task=task, names=c.label_names),
        checks,
    )


if __name__ == "__main__":
    sys.exit(main())
