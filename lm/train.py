"""Train a language model as a config file says, or resume the run in --workdir.

python -m lm.train --config=FILE.py[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]

  --config    Python file with get_config(variant) -> ConfigDict; configs/defaults.py lists all
              fields
  --workdir   run folder: checkpoints, metrics.jsonl, TensorBoard, plots, samples, status.json;
              shared by all hosts
  --config.FIELD=VALUE   change a field, e.g. --config.optimizer.learning_rate=1e-3
              --config.mesh.fsdp=-1

Exit codes: 0 complete; 2 an error in config, data or checkpoint; 3 training failed (e.g. NaN); 143
stopped by SIGTERM, and 130 by SIGINT (Ctrl-C), with everything saved. A second Ctrl-C ends the
process at once, without saving. With several processes, stop any one of them: all stop at the same
step. Compiled code is cached in ~/.cache/openbook/compiled; JAX_COMPILATION_CACHE_DIR or
--config.compilation_cache names another folder.
"""

import logging
import sys

from lm.compiled import keep_compiled
from lm.host_memory import keep_freed
from lm.interrupts import entry_point
from lm.xla_flags import avoid_wrong_fusion


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv):
        print(__doc__.strip())
        return 0
    keep_freed()
    keep_compiled()
    from lm.data.read.sources import DataError
    from lm.distributed import mesh
    from lm.models.config import ConfigError
    from lm.training import command_line, loop
    from lm.training.checkpoints import CheckpointError
    from lm.weights import WeightsError

    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every file
    try:
        config, workdir = command_line.parse(argv)
        avoid_wrong_fusion(config.model.dtype)
        mesh.initialize_distributed()
        return loop.train(config, workdir)
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except loop.TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
