"""Next-token prediction: the pretraining objective of GPT (Radford et al. 2018, equation 1)."""

import dataclasses
from typing import ClassVar

from lm.data.packed import Packed
from lm.tasks.task import Tools, check_stride
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
        check_stride(self.stride, config.length)

    def rows(self, files: str, part: str, tools: Tools, stride: int = 0) -> Packed:
        return super().rows(files, part, tools, self.stride if part == "train" else 0)
