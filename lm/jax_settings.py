"""Check environment variables of JAX before JAX reads them."""

import difflib
import importlib.metadata
import os
import re

PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
FORMS = {  # variables that JAX checks too late, or with an error that does not name them
    "JAX_NUM_PROCESSES": (r"[1-9]\d{0,8}", "a number of processes of at least 1"),
    "JAX_PROCESS_ID": (r"\d{1,9}", "this process's number, from 0"),
    "JAX_COORDINATOR_ADDRESS": (r".+:\d{1,5}", "HOST:PORT of process 0, such as 10.0.0.1:1234"),
    "JAX_COORDINATOR_BIND_ADDRESS": (r".+:\d{1,5}", "HOST:PORT, such as 0.0.0.0:1234"),
    "JAX_COORDINATOR_PORT": (r"\d{1,5}", "a port"),
    "JAX_LOCAL_DEVICE_IDS": (r"\d+(,\d+)*", "numbers of devices, such as 0,1"),
    "JAX_PARTITION_INDEX": (r"\d{1,9}", "a whole number of at least 0"),
    "JAX_NUM_CPU_DEVICES": (r"[1-9]\d{0,5}|-1", "a number of devices of at least 1"),
}


class SettingsError(ValueError):
    """Invalid environment variable. The message names it, its value and what was expected."""


def check() -> None:
    """Raise SettingsError for the first invalid JAX_* variable. Starts no device."""
    env = {name: value for name, value in sorted(os.environ.items()) if name.startswith("JAX_")}
    for name, (form, expected) in FORMS.items():
        if env.get(name) and not re.fullmatch(form, env[name]):
            raise SettingsError(f"{name}={env[name]}: expected {expected}")
    _check_processes(env)
    _check_platforms(env)
    if not env:
        return
    try:
        import jax  # noqa: F401 (checks the other variables)
    except ValueError as error:
        said = str(error).lower()
        wrong = [f"{name}={value}" for name, value in env.items() if name.lower() in said]
        raise SettingsError(
            f"{' '.join(wrong) or 'a JAX_* variable'}: JAX refuses it ({error}); correct it or "
            "unset it"
        ) from None


def devices() -> list:
    """Start and return jax.devices(). Raises SettingsError if the requested ones are missing."""
    import jax

    try:
        return jax.devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # AssertionError: CUDA was requested from a JAX without it
        asked = [
            f"{name}={os.environ[name]}"
            for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
            if os.environ.get(name)
        ]
        why = (str(error).splitlines() or ["this JAX was installed without it"])[0]
        raise SettingsError(
            f"{' '.join(asked) or 'JAX'}: its devices cannot be used: {why}"
        ) from error


def _check_processes(env: dict[str, str]) -> None:
    count, rank = env.get("JAX_NUM_PROCESSES"), env.get("JAX_PROCESS_ID")
    if count and not rank and int(count) > 1:
        raise SettingsError(
            f"JAX_NUM_PROCESSES={count} without JAX_PROCESS_ID: give each process its own, from "
            f"0 to {int(count) - 1}"
        )
    if rank and not count:
        raise SettingsError(
            f"JAX_PROCESS_ID={rank} without JAX_NUM_PROCESSES: give the number of processes too"
        )
    if rank and count and int(rank) >= int(count):
        raise SettingsError(
            f"JAX_PROCESS_ID={rank}: expected a number from 0 to {int(count) - 1}, as "
            f"JAX_NUM_PROCESSES={count}"
        )


def _check_platforms(env: dict[str, str]) -> None:
    plugins = [entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")]
    if any(not name.startswith("xla_") for name in plugins):
        return  # plugins of other vendors have their own platform names
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        for platform in env[name].split(",") if env.get(name) else ():
            if platform.lower() not in PLATFORMS:
                close = difflib.get_close_matches(platform, PLATFORMS, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise SettingsError(
                    f"{name}={env[name]}: JAX has no platform {platform!r}{hint}; expected "
                    f"{', '.join(PLATFORMS)}"
                )
