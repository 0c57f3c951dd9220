"""The forms whose times are compared compute the same, and every line is printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks import layouts


@pytest.mark.parametrize(
    "forms",
    [
        layouts.embedded((50, 8), 16),
        layouts.projected(8, (8, 4), 1, jnp.float32),
        layouts.projected(8, (8, 4), 16, jnp.float32),
    ],
    ids=["table", "decoded", "trained"],
)
def test_forms_differ(forms):
    def flat(found):
        of_x, *others = found if isinstance(found, tuple) else ((), *found)
        return np.concatenate([np.ravel(of_x), np.hstack(others).ravel()])

    first, *others = (f(*args) for f, args in forms.values())
    for other in others:
        assert np.abs(flat(first)).max() > 0
        np.testing.assert_allclose(flat(other), flat(first), rtol=1e-5, atol=1e-6)


def test_every_operation_is_timed(capsys):
    layouts.main(["--quick"])
    kind, *lines = capsys.readouterr().out.splitlines()
    assert kind == f"on {jax.devices()[0].device_kind}" and len(lines) == 7
    assert all("scatter" in line or "joined" in line for line in lines)
