"""Stop a training run on Ctrl-C or SIGTERM, at the same step on all processes."""

import os
import signal

import jax
import numpy as np

from lm.interrupts import Interrupts

KEPT = "what was saved stays, and the same command goes on from there"


class Signals(Interrupts):
    """Signal handler. A signal raises KeyboardInterrupt before `waits` is set; then `stop` sees it.

    With several processes `waits` is always set, because they must stop together. JAX's preemption
    service reports a SIGTERM on any process to all, so SIGINT is sent on as SIGTERM.
    """

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        super().__init__(
            (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM), KEPT
        )
        self.waits = self._several

    def _handle(self, number: int, frame) -> None:
        if self._several and not self.received:
            os.kill(os.getpid(), signal.SIGTERM)
        super()._handle(number, frame)

    def stop(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer and signal `received` on all processes."""
        if not self._several:
            return bool(self.received)
        from jax.experimental import multihost_utils

        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        interrupted = np.any(multihost_utils.process_allgather(np.int32(self.received)))
        self.received = signal.SIGINT if interrupted else signal.SIGTERM
        return True
