"""Device mesh: data (replicas), fsdp (sharded parameters), sequence (split rows), tensor."""

import logging
import math
import os

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lm.jax_settings import SettingsError, devices
from lm.models.config import ConfigError
from lm.phases import phase

AXES = ("data", "fsdp", "sequence", "tensor")
ACROSS = ("data", "fsdp")  # axes that may cross a slow network: they communicate least

log = logging.getLogger(__name__)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices=None
) -> Mesh:
    """Make a mesh over `devices` (default: all, of every process). -1: all remaining devices.

    Slices, whose devices have a faster network among themselves (TPU pods joined by a data-centre
    network, hosts with GPUs), lie along the first axis of ACROSS that they divide. Raises
    ConfigError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    sizes = resolve(sizes, len(devices))
    # Explicit axes, the default of make_mesh, do not work with Linen's gathers and constraints.
    types = (AxisType.Auto,) * len(AXES)
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(_slice_of(device), []).append(device)
    count = len(slices)
    even = len({len(each) for each in slices.values()}) == 1
    across = [axis for axis in ACROSS if even and sizes[axis] % count == 0]
    if count == 1 or not across:
        if count > 1:
            log.warning(
                "mesh %s: %d slices of devices divide neither data nor fsdp evenly, so other axes "
                "cross the slow network between them",
                " x ".join(f"{axis} {size}" for axis, size in sizes.items()),
                count,
            )
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)
    shape = tuple((sizes | {across[0]: sizes[across[0]] // count}).values())
    placed = [mesh_utils.create_device_mesh(shape, slices[n]) for n in sorted(slices)]
    return Mesh(np.concatenate(placed, AXES.index(across[0])), AXES, axis_types=types)


def _slice_of(device) -> int:
    return getattr(device, "slice_index", 0) or 0


def resolve(sizes: dict[str, int], devices: int) -> dict[str, int]:
    """Replace -1 by a size. Raises ConfigError when the sizes cannot cover exactly `devices`."""
    for axis, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise ConfigError(
                f"mesh.{axis}={size!r}: expected a positive number of devices, or -1 for all "
                "that are left"
            )
    shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"mesh {shape}: only one axis can be -1 (the rest of the devices), not "
            f"{' and '.join(free)}"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % fixed == 0:
        return {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}
    if not free and fixed == devices:
        return dict(sizes)
    advice = (
        f"choose sizes whose product divides {devices}"
        if free
        else f"make the product {devices}, or set one axis to -1 (the rest)"
    )
    raise ConfigError(
        f"mesh {shape} does not fit: it covers {'a multiple of ' if free else ''}{fixed} devices "
        f"and there are {devices}; {advice}"
    )


def initialize_distributed() -> None:
    """Initialise the processes of a multi-host run; do nothing on a single host.

    Call it before anything else uses JAX. Raises SettingsError for unusable environment variables
    or devices.
    """
    # JAX itself detects Kubernetes, SLURM and TPU pods. JAX_NUM_PROCESSES and JAX_PROCESS_ID are
    # this project's own variables, for other launchers.
    env = os.environ
    count = int(env.get("JAX_NUM_PROCESSES") or 0)
    slurm = int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in env
    tpu_pod = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    if count > 1 or (not count and (slurm or tpu_pod or env.get("JAX_COORDINATOR_ADDRESS"))):
        if not getattr(jax.config, "jax_enable_preemption_service", True):
            raise SettingsError(
                "JAX_ENABLE_PREEMPTION_SERVICE is off: several processes need it to stop, and "
                "save, at the same step"
            )
        rank = int(env["JAX_PROCESS_ID"]) if count else None
        try:
            with phase("joining the other processes"):
                jax.distributed.initialize(num_processes=count or None, process_id=rank)
        except (ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise SettingsError(
                f"the processes of this run could not be joined ({said}); "
                f"JAX_COORDINATOR_ADDRESS={env.get('JAX_COORDINATOR_ADDRESS', '')} "
                "is to be HOST:PORT of process 0, with JAX_NUM_PROCESSES and JAX_PROCESS_ID "
                "unless SLURM or a TPU pod tells them"
            ) from error
    devices()
