"""Next-token prediction: the pretraining objective of GPT (Radford et al. 2018, equation 1)."""

import dataclasses
from typing import ClassVar

from lm.data.packed import Packed
from lm.models.config import ConfigError
from lm.tasks.task import Tools
from lm.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class NextToken(TextTask):
    """Predict each token of a document from those before it."""

    # Tokens between the starts of windows of a document longer than a row; less than length makes
    # them overlap; 0 = length. Training only.
    stride: int = 0

    heads: ClassVar[tuple[str, ...]] = ("causal_lm",)
    evaluation: ClassVar[str] = "--data=FILES"

    def check(self, config) -> None:
        super().check(config)
        if not 0 <= self.stride <= config.length:
            raise ConfigError(
                f"task.stride={self.stride}: expected at most length={config.length}, or 0 for "
                "windows that do not overlap"
            )

    def rows(self, files: str, part: str, tools: Tools, stride: int = 0) -> Packed:
        return super().rows(files, part, tools, self.stride if part == "train" else 0)
