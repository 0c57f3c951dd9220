"""Resolution of a path or hub id to a local directory or .gguf file."""

import re
from pathlib import Path

from lm.weights.errors import WeightsError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # configuration and tokenizer
WEIGHT_FILES = ("*.safetensors",)
# copies of the weights for other programs
NEVER = (
    "*/*.safetensors",
    "onnx/*",
    "openvino/*",
    "original/*",
    "consolidated*",
)


def resolve(path_or_id, weights: bool = True) -> Path:
    """Resolve `path_or_id` to a local directory or .gguf file.

    A hub id is downloaded into the hub's cache. weights: whether to download the weights too, not
    only the configuration and the tokenizer.
    Raise WeightsError if there is no such directory, file or hub repository, or if the file has
    another format.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        advice = (
            refused(path)
            or "give the directory that holds config.json and the weights, or a .gguf file"
        )
        raise WeightsError(f"{path} is a file that cannot be read as a model: {advice}")
    name = str(path_or_id)
    if not HUB_ID.fullmatch(name) or path.suffix in (".gguf", ".safetensors", ".bin"):
        raise WeightsError(
            f"{name} does not exist: "
            "give a directory with config.json and model.safetensors, a .gguf file, or a hub id"
        )
    return download(name, weights)


def refused(path: Path) -> str:
    """Say why a weight file of another format is not read; '' if there is no reason."""
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return (
            "pickled weights can run code and are not read; "
            "load them once with transformers and write them as safetensors: "
            "AutoModel.from_pretrained(SOURCE).save_pretrained(DIRECTORY)"
        )
    return ""


def download(repo: str, weights: bool) -> Path:
    """Download a snapshot of a hub repository.

    With weights=False, only the configuration and the tokenizer: a caller can refuse an unsupported
    model before the large download.
    """
    import huggingface_hub
    from huggingface_hub import errors

    patterns = SMALL_FILES + (WEIGHT_FILES if weights else ())
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, allow_patterns=list(patterns), ignore_patterns=list(NEVER)
            )
        )
    except errors.GatedRepoError as error:
        reason = (
            "access to it is restricted: "
            "accept its licence on its page, then log in with `hf auth login`"
        )
        raise WeightsError(f"hub model {repo!r} cannot be downloaded: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = (
            "there is no public repository of this name on the hub "
            "(if it is private, log in with `hf auth login`)"
        )
        raise WeightsError(f"{repo!r} is not a local directory, and {reason}") from error
    # the hub's client has many classes for no network, a timeout, offline mode or a full disk
    except Exception as error:
        raise WeightsError(
            f"{repo!r} is not a local directory, and the hub did not give it "
            f"({type(error).__name__}). "
            "Without a network, copy the repository's config.json, *.safetensors and tokenizer "
            "files into a directory and give its path"
        ) from error
