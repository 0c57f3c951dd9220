"""Losses of preferences and GRPO against trl itself. Skipped without the extra `trl`."""

import collections
import types
from unittest import mock

import numpy as np
import pytest

from lm.losses import preference
from lm.tasks.grpo import GRPO
from lm.tasks.preference import ORPO, SimPO, lengths, present
from tests.lm.losses.test_policy import LENGTHS, G, Given, P, T, batch_of, drawn
from tests.lm.tasks.test_kto import LABELS, labelled, models_of
from tests.lm.tasks.test_kto import Given as GivenKTO
from tests.lm.tasks.test_preference import batch_of as pairs_of

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'openbook[trl]'")
torch = pytest.importorskip("torch")
SIZE = 5  # tokens of an answer in trl's rows
RNG = np.random.default_rng(0)


def tensor(x):
    return torch.tensor(np.asarray(x))


def network(scores):
    """A model whose tokens have log-probabilities that sum to `scores` [N] in each row."""
    each = np.repeat(np.asarray(scores)[:, None] / SIZE, SIZE, axis=1)
    fields = dict.fromkeys(("log_probs", "entropy", "mean_logits"), tensor(each))
    out = mock.MagicMock(**fields, is_top1=tensor(each > 0))
    return lambda **_: out


def trainer(kind, policy, reference, **fields):
    """What `kind._compute_loss` reads of a trainer."""
    one = mock.MagicMock()
    one.accelerator.device = "cpu"
    one.accelerator.gather_for_metrics = one.accelerator.gather = lambda x: x
    one._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    one.ref_model = reference
    one.model = torch.nn.Identity()
    one.aux_loss_enabled = one.precompute_ref_logps = one.use_liger_kernel = False
    one.args = types.SimpleNamespace(
        gradient_checkpointing_kwargs=None, delta=None, use_bias_correction_kl=False
    )
    for name, value in fields.items():
        setattr(one, name, value)
    return lambda inputs: float(kind._compute_loss(one, policy, inputs, *ARGUMENTS[kind]))


@pytest.fixture(autouse=True)
def without_checkpointing(monkeypatch):
    import contextlib

    for module in ("dpo_trainer", "kto_trainer"):
        monkeypatch.setattr(
            f"trl.trainer.{module}.disable_gradient_checkpointing",
            lambda *_: contextlib.nullcontext(),
        )


ARGUMENTS = {trl.DPOTrainer: (False,), trl.KTOTrainer: (False,), trl.GRPOTrainer: ()}


@pytest.mark.parametrize(("kind", "beta"), [("sigmoid", 0.1), ("hinge", 0.1), ("ipo", 0.3)])
def test_dpo_differs_from_trl(kind, beta):
    scores, theirs = RNG.normal(-5, 2, (2, 6, 2))
    mask = torch.ones(12, SIZE + 1, dtype=int)
    inputs = {"input_ids": torch.ones(12, SIZE + 1, dtype=int), "completion_mask": mask}
    inputs["attention_mask"] = mask
    loss = trainer(
        trl.DPOTrainer,
        network(scores.T.ravel()),
        network(theirs.T.ravel()),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        label_smoothing=0.0,
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )(inputs)
    ratios = scores - theirs
    if kind == "ipo":  # trl divides by the length, as `length_normalised` does
        ratios = ratios / (SIZE + 1)
    found = preference.preferred(ratios[:, 0] - ratios[:, 1], kind, beta)
    np.testing.assert_allclose(loss, np.mean(found), rtol=1e-5)


class GivenSimPO(SimPO):
    def scored(self, model, params, batch, rng=None):
        return params


class GivenORPO(ORPO):
    scored = GivenSimPO.scored


@pytest.fixture
def compared():
    """Log-probabilities [B, P, 2] of a batch, and (sums, means) of both answers of each pair."""
    batch = pairs_of(RNG)
    scores = RNG.normal(-5, 2, (*present(batch).shape, 2)).astype(np.float32)
    real, sizes = np.asarray(present(batch)) > 0, np.asarray(lengths(batch))
    return batch, scores, scores[real], (scores / np.maximum(sizes, 1))[real]


def trls(name, **fields):
    """A trainer of trl with the fields that its loss reads."""
    package = pytest.importorskip(f"trl.experimental.{name.lower()}")
    kind, one = getattr(package, f"{name}Trainer"), mock.MagicMock(**fields)
    one.accelerator.device = "cpu"
    method = {"CPO": "cpo_loss", "ORPO": "odds_ratio_loss"}[name]
    return lambda scores: getattr(kind, method)(one, *tensor(scores.T))[0].numpy()


def test_cdpo_differs_from_trl(compared):
    _, _, sums, _ = compared
    loss = trls("CPO", loss_type="sigmoid", beta=0.3, alpha=0.0, label_smoothing=0.2)(sums)
    found = preference.preferred(sums[:, 0] - sums[:, 1], "sigmoid", 0.3, 0.2)
    np.testing.assert_allclose(loss, found, rtol=1e-5)


def test_simpo_differs_from_trl(compared):
    batch, scores, _, means = compared
    fields = {"beta": 2.5, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.7}
    loss = trls("CPO", loss_type="simpo", **fields)(means)
    found = GivenSimPO(beta=2.5, gamma=0.7).loss(None, scores, batch)
    np.testing.assert_allclose(np.mean(loss), found.first.sum / found.first.weight, rtol=1e-5)


def test_orpo_differs_from_trl(compared):
    batch, scores, sums, means = compared
    loss = -trls("ORPO", beta=0.4)(means)  # trl subtracts it
    task = GivenORPO(odds_weight=0.4)
    found = task.loss(None, scores, batch).terms
    odds = task.coefficients["odds"] * found["odds"].sum / found["odds"].weight
    np.testing.assert_allclose(np.mean(loss), odds, rtol=1e-5)
    tokens = np.asarray(lengths(batch))[np.asarray(present(batch)) > 0][:, 0].sum()
    chosen = found["chosen"].sum / found["chosen"].weight  # a mean over tokens, as in trl
    np.testing.assert_allclose(chosen, -sums[:, 0].sum() / tokens, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.7, -0.7])
def test_kto_differs_from_trl(shift):
    mine, theirs = RNG.normal(-5, 1, (2, 4, 10, 2))
    mine[..., 1] = theirs[..., 1] + shift + 0.1 * RNG.normal(size=(4, 10))
    batch = labelled(pairs_of(RNG, rows=4), LABELS)
    task = GivenKTO(beta=0.2, undesirable_weight=1.5)
    found = task.loss(None, mine, batch, models=models_of(None, theirs))
    real = lambda x: np.concatenate([x[:3, :2].reshape(6, 2), x[3, :1]])
    own, other = real(mine), real(theirs)
    inputs = {
        "label": tensor(LABELS.astype(bool)),
        "input_ids": torch.ones(7, SIZE + 1, dtype=int),
        "completion_mask": torch.ones(7, SIZE + 1),
        "attention_mask": torch.ones(7, SIZE + 1),
    }
    policy, reference = network(own[:, 0]), network(other[:, 0])
    loss = trainer(
        trl.KTOTrainer,
        policy,
        reference,
        _compute_kl_logps=lambda model, _: tensor((own if model is policy else other)[:, 1]),
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.0,
        undesirable_weight=1.5,
        _total_train_tokens=0,
        _tp_size=1,
    )(inputs)
    np.testing.assert_allclose(loss, found.first.sum / found.first.weight, rtol=1e-5)


@pytest.mark.parametrize(
    ("trls", "fields"),
    [
        ("grpo", {"kl": 0.04}),
        ("bnpo", {"mean": "token", "clip_high": 0.28}),
        ("dr_grpo", {"mean": "constant", "scale": "none"}),
        ("grpo", {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1}),
    ],
)
def test_grpo_differs_from_trl(trls, fields):
    task: GRPO = Given(new_tokens=T, group=G, **fields)
    params, arrays = drawn(1)
    made = task.finished(arrays)
    loss = task.loss(None, params, batch_of(made))
    flat = lambda name: tensor(made[name].reshape(P * G, T))
    advantages = made["advantages"][..., 0].ravel()  # the first token is always there
    assert (LENGTHS > 0).all()
    inputs = {
        "prompt_ids": torch.ones(P * G, 1, dtype=int),
        "prompt_mask": torch.ones(P * G, 1),
        "completion_ids": torch.ones(P * G, T, dtype=int),
        "completion_mask": flat("weights"),
        "advantages": tensor(advantages),
        "old_per_token_logps": flat("old_log_probs"),
        "ref_per_token_logps": flat("reference_log_probs"),
    }
    logps, entropy = tensor(params["log_probs"]), tensor(params["entropy"])
    found = trainer(
        trl.GRPOTrainer,
        None,
        None,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, entropy, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=task.ratio,
        beta=task.kl,
        loss_type=trls,
        epsilon_low=task.clip_low,
        epsilon_high=task.clip_high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        _entropy_bonus_enabled=False,
    )(inputs)
    np.testing.assert_allclose(found, loss.first.sum / loss.first.weight, rtol=1e-4)
