"""Arrays that a source carries from one step to a later one, in a step folder.

Their names may be any text, and arrays without elements are allowed, which Orbax does not write: so
names, shapes and dtypes are saved as JSON, and the arrays under numbers.
"""

from collections.abc import Mapping

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lm.weights.runs.paths import Folder

Described = Mapping[str, Mapping]  # name -> {"shape": ..., "dtype": ...}


def split(arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, np.ndarray]]:
    """Description of the arrays as JSON, and the arrays with elements by their numbers."""
    about = {
        name: {"shape": list(values.shape), "dtype": values.dtype.name}
        for name, values in arrays.items()
    }
    numbered = {str(i): values for i, values in enumerate(arrays.values()) if values.size}
    # Orbax writes in the background, and the source may change its arrays meanwhile.
    return about, {number: np.array(values) for number, values in numbered.items()}


def read(folder: Folder, about: Described) -> dict[str, np.ndarray]:
    """Arrays of a step folder, from their description. Raises what Orbax raises."""
    empty = {name: np.empty(each["shape"], each["dtype"]) for name, each in about.items()}
    wanted = {str(i): values for i, values in enumerate(empty.values()) if values.size}
    if not wanted:
        return empty
    options = {number: ocp.RestoreArgs(restore_type=np.ndarray) for number in wanted}
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=options)
    found = ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / "carry"), args=args)
    return {name: found.get(str(i), empty[name]) for i, name in enumerate(empty)}
