"""Read config files, and print a JSON object of their values by name, for launch.stages.

python -m launch.resolve FILE.py[:variant] ...

It runs in a separate process, so that configs and the files they import are read anew.
"""

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Convert ConfigDicts at any depth to dicts, and tuples to lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _read(config: str) -> Any:
    """Call get_config() of a config file in the same way as ml_collections' config flags."""
    path, colon, variant = (
        config.partition(".py:") if ".py:" in config else (config.removesuffix(".py"), "", "")
    )
    spec = importlib.util.spec_from_file_location("resolved_config", f"{path}.py")
    assert spec is not None and spec.loader is not None  # true for a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return plain(module.get_config(variant) if colon else module.get_config())


def main(configs: list[str]) -> int:
    """Print {"configs": {name: JSON text, or null on an error}, "files": imported local files}."""
    found: dict[str, str | None] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for config in configs:
            try:
                said = json.dumps(_read(config), sort_keys=True, default=repr)
                found[config] = re.sub(r" at 0x[0-9a-f]+", "", said)
            except (
                Exception,
                SystemExit,
            ):  # a config is a program and may raise anything; the stage itself reports it
                found[config] = None
    imported = [
        Path(file)
        for module in list(sys.modules.values())
        if (file := getattr(module, "__file__", None))
    ]
    files = {
        str(file)
        for file in imported
        if file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts
    }
    print(json.dumps({"configs": found, "files": sorted(files)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
