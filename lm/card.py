"""Model card (README.md) of an exported model: its base, training and metrics."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from lm.models.config import ModelConfig
from lm.training import ending, trackers
from lm.weights.loading import is_run, kept_template, run_config

CARD = "README.md"
MARK = "<!-- written by openbook export; a card without this line is left alone -->"
PIPELINES = {  # head -> pipeline tag of the Hugging Face hub
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "embedding": "sentence-similarity",
}


def write(directory: str, source: str, config: ModelConfig, adapter_of: str = "") -> bool:
    """Write the card of `source` (run, model directory, hub id or .gguf) to an export's directory.

    adapter_of: the base that an exported adapter names, "" for a complete model. Returns False, and
    writes nothing, if `directory` has a card that was not written by this function.
    """
    path = Path(directory).expanduser() / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    path.write_text(text(path.resolve().parent.name, source, config, adapter_of), encoding="utf-8")
    return True


def text(name: str, source: str, config: ModelConfig, adapter_of: str = "") -> str:
    """Text of the card: YAML front matter of the hub's format, then a table."""
    trained = run_config(source)
    base = adapter_of or (trained.get("init_from", "") if trained else source)
    licence = licence_of(base)
    data = ModelCardData(
        license=licence,
        base_model=base if _on_hub(base) else None,
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag=PIPELINES.get(config.head),
        tags=["openbook"],
    )
    said = licence or (
        "not known here: look it up before you publish this"
        if base
        else "yours to choose: trained from random weights"
    )
    rows = [
        ("base", f"`{base}`" if base else "none: trained from random weights"),
        ("licence of the base", said),
    ]
    if trained:
        task, files = trained.get("task", {}).get("name", ""), trained.get("data", {})
        read = files.get("files") or ", ".join(
            str(source.get("files")) for source in (files.get("mixture") or {}).values()
        )
        rows += [
            ("task", f"`{task}`"),
            ("data", f"`{read}`" if read else "random tokens"),
            (
                "steps",
                f"{trained.get('steps')} of {trained.get('batch_size')} rows of "
                f"{trained.get('length')} tokens",
            ),
        ]
    if template := kept_template(source):
        rows.append(("template", f"`{template['name']}`, see `template.json`"))
    if is_run(source) and (figures := ending.figures(trackers.read(source))):
        rows.append(("last figures", figures))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return (
        f"---\n{data.to_yaml()}\n---\n{MARK}\n\n# {name}\n\nA {config.family} model, exported by "
        f"Openbook.\n\n| | |\n|---|---|\n{table}\n"
    )


def licence_of(base: str) -> str | None:
    """Licence in the card of a model directory, or of the base of a run; None if unknown."""
    if not base:
        return None
    if is_run(base):
        return licence_of(run_config(base).get("init_from", ""))
    path = Path(base).expanduser() / CARD
    if not path.is_file():
        return None
    try:
        return ModelCard(path.read_text(encoding="utf-8")).data.to_dict().get("license")
    except (ValueError, yaml.YAMLError):  # invalid front matter
        return None


def _on_hub(base: str) -> bool:
    return (
        bool(base)
        and not Path(base).expanduser().exists()
        and base.count("/") == 1
        and not base.endswith(".gguf")
    )
