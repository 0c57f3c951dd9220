"""Files in which sentence-transformers (Reimers & Gurevych 2019) configures its pooling.

They say how a model's hidden states become one vector.
"""

import json
from pathlib import Path
from typing import Any

from lm.models.config import ConfigError, ModelConfig
from lm.weights.errors import WeightsError
from lm.weights.sources import read_json

MODULES, POOLING, NORMALIZE = "modules.json", "1_Pooling", "2_Normalize"
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
# values of `pooling_mode`, which later versions write instead
SHORT = {"mean": "mean", "cls": "first", "lasttoken": "last"}


def read(directory: Path) -> dict[str, Any] | None:
    """Read `pooling` and `normalize_embedding`; None if this is no sentence-transformers directory.

    Raise ConfigError for unsupported modules and poolings, and WeightsError for unreadable files.
    """
    if not (directory / MODULES).is_file():
        return None
    modules = [
        (str(module.get("type")).rsplit(".", 1)[-1], module.get("path"))
        for module in _modules(directory / MODULES)
    ]
    kinds = [kind for kind, _ in modules]
    if (
        kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        or modules[0][1]
    ):
        raise ConfigError(
            f"{directory / MODULES} lists {', '.join(kinds)}; "
            "a Transformer in the directory itself, Pooling and perhaps Normalize are supported: "
            "read the model without them with head='none'"
        )
    pooling = str(modules[1][1])
    if Path(pooling).name != pooling:
        raise WeightsError(
            f"{directory / MODULES}: "
            f"the Pooling module's path {pooling!r} is not a folder beside it"
        )
    settings = read_json(directory / pooling / "config.json")
    if "pooling_mode" in settings:
        modes = settings["pooling_mode"]
        found = [SHORT.get(mode, mode) for mode in (modes if isinstance(modes, list) else [modes])]
    else:
        found = [
            POOLINGS.get(name, name)
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on
        ]
    if len(found) != 1 or found[0] not in POOLINGS.values():
        raise ConfigError(
            f"{directory / POOLING} pools by {found or 'nothing'}; "
            f"one of {', '.join(POOLINGS)} is supported"
        )
    if settings.get("include_prompt") is False:
        raise ConfigError(
            f"{directory / POOLING}: include_prompt=False is not supported; "
            "every token of the text is pooled"
        )
    return dict(pooling=found[0], normalize_embedding=len(kinds) == 3)


def _modules(path: Path) -> list[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise WeightsError(f"{path} holds no list of modules")
    return content


def files(c: ModelConfig) -> dict[str, Any]:
    """JSON contents of an embedding model's files, by path within the directory."""
    kinds = [("Transformer", ""), ("Pooling", POOLING)] + (
        [("Normalize", NORMALIZE)] if c.normalize_embedding else []
    )
    modules = [
        dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{kind}")
        for i, (kind, path) in enumerate(kinds)
    ]
    modes = {name: ours == c.pooling for name, ours in POOLINGS.items()}
    others = dict.fromkeys(
        (
            "pooling_mode_max_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
            "pooling_mode_weightedmean_tokens",
        ),
        False,
    )
    return {
        MODULES: modules,
        f"{POOLING}/config.json": dict(word_embedding_dimension=c.d_model, **modes, **others),
    }
