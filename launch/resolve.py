"""What config files say, for launch.stages: python -m launch.resolve FILE.py[:variant] ... prints a JSON object of them, by name.

It runs in a process of its own, so that a config is read with the files it imports as they are now, and may import what it likes.
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
    """ConfigDicts, at any depth, as dicts; lists and tuples as lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _read(config: str) -> Any:
    """What get_config() returns, called as ml_collections' config flags do."""
    path, colon, variant = (
        config.partition(".py:") if ".py:" in config else (config.removesuffix(".py"), "", "")
    )
    spec = importlib.util.spec_from_file_location("resolved_config", f"{path}.py")
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return plain(module.get_config(variant) if colon else module.get_config())


def main(configs: list[str]) -> int:
    """Prints {"configs": {name: what it says as JSON text, or null where it cannot be read}, "files": those here that were imported}."""
    found: dict[str, str | None] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for config in configs:
            try:
                said = json.dumps(_read(config), sort_keys=True, default=repr)
                found[config] = re.sub(r" at 0x[0-9a-f]+", "", said)
            except (
                Exception,
                SystemExit,
            ):  # a config is a program; the stage itself says what is wrong with it
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
