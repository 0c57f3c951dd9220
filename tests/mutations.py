"""Break the code on purpose and check that the tests notice: python -m tests.mutations [NUMBER ...]

Gold tests guard against the silent defects that users of other trainers report most, numbered as
in GOLD. Each mutation puts one such defect into a copy of the tree and runs the test that must
fail. NUMBER selects a gold test. Exit code 1 if a mutation is missed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

FAILED = 1  # pytest's exit code when tests ran and failed; any other is no verdict
ROOT = pathlib.Path(__file__).parent.parent
GOLD = {
    1: "loss masks of every template, token by token",
    2: "packed rows weigh what their documents weigh alone, in loss and gradient",
    3: "micro-batches and devices change nothing",
    4: "a resumed run is the undisturbed one, bit for bit; every epoch has another order",
    5: "generation is given the tokens that training read",
    6: "the end of an answer is trained, and a model that knows its answers stops",
    7: "preferences are learned against a reference; advantages and clipping are their formulas",
    8: "ROUGE-L is rouge_score's, and copying has its known score",
    9: "fresh adapters change nothing, merged ones are W + s A B",
    10: "a key that does not exist, or an option that is ignored, is refused",
    11: "penalties are their formulas, mixes end in the models themselves",
    12: "likelihoods for lm-evaluation-harness are those of brute force",
}


class Mutation(NamedTuple):
    """Replace `old`, which occurs once in `file`, by `new`; then the test `node` must fail.

    `number` is that of the gold test.
    """

    number: int
    file: str
    old: str
    new: str
    node: str


TEMPLATES, INSTRUCT = "tests/lm/data/test_templates.py", "tests/lm/data/test_instruct.py"
GOLDEN = f"{TEMPLATES}::test_tokens_or_masks_differ_from_the_golden_ones"
PACKED = f"{INSTRUCT}::test_packed_examples_weigh_other_than_each_alone"
BATCHES, PENALTIES = "tests/lm/data/test_batches.py", "tests/lm/adaptation/test_penalties.py"
FRESH = (
    "tests/lm/adaptation/test_lora.py"
    "::test_a_fresh_adapter_changes_a_bit_or_a_merged_kernel_is_not_w_plus_s_a_b"
)
POLICY = "tests/lm/losses/test_policy.py"
SCORES, LIKELIHOOD = "tests/lm/evaluation/test_scores.py", "tests/lm/evaluation/test_likelihood.py"

MUTATIONS = [
    Mutation(
        1,
        "lm/data/templates/alpaca.py",
        '{instruction}\\n\\n### Response:"',
        '{instruction}\\n\\n### Response:\\n"',
        GOLDEN,
    ),
    Mutation(
        1, "lm/data/templates/chat.py", "trained=s.trained and trained", "trained=s.trained", GOLDEN
    ),
    Mutation(
        1,
        "lm/data/templates/chat.py",
        "found.append(Segment(style.header, False, control=True))",
        "found.append(Segment(style.header, True, control=True))",
        GOLDEN,
    ),
    Mutation(
        1,
        "lm/data/templates/tk_instruct.py",
        "task.positive[:positive]",
        "task.positive[1 : positive + 1]",
        GOLDEN,
    ),
    Mutation(
        2,
        "lm/models/attention/mask.py",
        "self.q_segments[:, None, :, None] == self.k_segments[:, None, None, :]",
        "(self.q_segments[:, None, :, None] > 0) & (self.k_segments[:, None, None, :] > 0)",
        f"{PACKED}[gpt2]",
    ),
    Mutation(
        2,
        "lm/batch.py",
        "np.pad(segments[:, 1:] != segments[:, :-1]",
        "np.pad(segments[:, 1:] < 0",
        f"{PACKED}[gpt2]",
    ),
    Mutation(
        2,
        "lm/models/model.py",
        "Mask.between(batch.segments, jnp.asarray(owners))",
        "Mask.between(jnp.minimum(batch.segments, 1), jnp.asarray(owners))",
        f"{PACKED}[t5]",
    ),
    Mutation(
        2,
        "lm/models/model.py",
        "Mask.between(batch.segments, jnp.asarray(owners))",
        "Mask.between(batch.segments, jnp.minimum(owners, 1))",
        f"{PACKED}[bart]",
    ),
    Mutation(
        2,
        "lm/models/scan.py",
        "(runs_of_x[:, shift] == run)",
        "(runs_of_x[:, shift] >= 0)",
        f"{PACKED}[mamba]",
    ),
    Mutation(
        3,
        "lm/training/step.py",
        "return loss.first.sum, loss",
        "return loss.first.sum / jnp.maximum(loss.first.weight, 1.0) * batch.tokens.size, loss",
        "tests/lm/training/test_step.py"
        "::test_micro_batches_of_unequal_weight_are_averaged_as_if_equal",
    ),
    Mutation(
        3,
        "lm/training/step.py",
        "return jax.tree.map(jnp.add, carry, of_micro(trained, held, *xs)), None",
        "return of_micro(trained, held, *xs), None",
        "tests/lm/training/test_step.py"
        "::test_a_step_on_eight_devices_or_in_micro_batches_differs_from_one_device",
    ),
    Mutation(
        3,
        "lm/tasks/task.py",
        "cls.by_row = False",
        "cls.by_row = cls.by_row",
        "tests/lm/tasks/test_own.py"
        "::test_a_task_that_compares_rows_without_saying_so_differs_on_several_devices",
    ),
    Mutation(
        4,
        "lm/data/batches.py",
        "self._read = first\n",
        "self._read = first = 0\n",
        f"{BATCHES}::test_a_restored_iterator_does_not_continue",
    ),
    Mutation(
        4,
        "lm/training/loop.py",
        "self.source.restore(restored.data, restored.carry)",
        "self.source.position()",
        "tests/lm/training/test_loop.py::test_a_signal_loses_a_step_or_repeats_one",
    ),
    Mutation(
        4,
        "lm/data/batches.py",
        ".shuffle().repeat()",
        ".shuffle().repeat(reseed_each_epoch=False)",
        f"{BATCHES}::test_an_epoch_misses_a_row_or_repeats_one",
    ),
    Mutation(
        5,
        "lm/data/templates/template.py",
        "asked = self._asked(question, index)\n        except DataError",
        "asked = self._asked(question, 0)\n        except DataError",
        f"{TEMPLATES}::test_generation_is_given_other_tokens_than_training",
    ),
    Mutation(
        5,
        "lm/data/encode/encoding.py",
        "ids = [i for found in self._tokenise(runs) for i in found]",
        "ids = self._tokenizer(''.join(segment.text for segment in example.segments), "
        "add_special_tokens=False)['input_ids']",
        f"{TEMPLATES}::test_generation_is_given_other_tokens_than_training",
    ),
    Mutation(
        6,
        "lm/data/encode/encoding.py",
        "written, loss = written[:end], loss[:end]",
        "written, loss = written[: end - 1], loss[: end - 1]",
        f"{INSTRUCT}::test_a_model_that_knows_its_answers_does_not_stop_after_them",
    ),
    Mutation(
        6,
        "lm/data/encode/plain_text.py",
        "yield np.array([*start, *ids, end], np.int32)",
        "yield np.array([*start, *ids], np.int32)",
        "tests/lm/data/test_packing.py::test_the_end_of_text_token_is_not_trained",
    ),
    Mutation(
        7,
        "lm/tasks/preference.py",
        "ratios = scores - self.reference_scores(models, batch)",
        "ratios = scores",
        "tests/lm/tasks/test_preference.py::test_a_loss_is_not_the_formula[llama]",
    ),
    Mutation(
        7,
        "lm/losses/policy.py",
        "-jnp.minimum(ratio * advantages, held * advantages)",
        "-held * advantages",
        f"{POLICY}::test_a_loss_differs_from_its_paper_or_moves_without_a_signal",
    ),
    Mutation(
        7,
        "lm/losses/advantages.py",
        "delta + gamma * decay * after",
        "delta + gamma * after",
        f"{POLICY}::test_advantages_of_a_critic_and_its_loss_differ_from_loops",
    ),
    Mutation(
        8,
        "lm/evaluation/scores.py",
        'RougeScorer(["rouge1", "rougeL"], use_stemmer=True)',
        'RougeScorer(["rouge1", "rougeL"], use_stemmer=False)',
        f"{SCORES}::test_rouge_is_not_that_of_the_package_super_natural_instructions_uses",
    ),
    Mutation(
        8,
        "lm/evaluation/scores.py",
        "return max(metric(answer, reference)",
        "return min(metric(answer, reference)",
        f"{SCORES}::test_rouge_is_not_that_of_the_package_super_natural_instructions_uses",
    ),
    Mutation(
        8,
        "lm/evaluation/generation.py",
        "[question.record.input or question.record.instruction for",
        "[question.record.instruction for",
        f"{SCORES}::test_copying_scores_other_than_by_hand",
    ),
    Mutation(
        9,
        "lm/adaptation/lora.py",
        'flat[f"{path}/b"] = jnp.zeros(',
        'flat[f"{path}/b"] = jnp.ones(',
        FRESH,
    ),
    Mutation(9, "lm/adaptation/lora.py", "+ scale * product(w, a, b)", "+ product(w, a, b)", FRESH),
    Mutation(
        10,
        "lm/training/command_line.py",
        "if path not in known:",
        'if path == "":',
        "tests/lm/training/test_settings.py::test_a_mistyped_argument_is_not_explained",
    ),
    Mutation(
        10,
        "lm/tasks/__init__.py",
        "if name not in known:",
        'if name == "":',
        "tests/lm/tasks/test_sections.py::test_a_field_that_a_task_does_not_have_is_accepted",
    ),
    Mutation(
        11,
        "lm/adaptation/interpolation.py",
        "jnp.asarray(t if alpha else b, b.dtype)",
        "jnp.asarray(b if alpha else t, b.dtype)",
        "tests/lm/adaptation/test_interpolation.py"
        "::test_an_end_is_not_its_model_bit_for_bit_or_the_middle_not_between",
    ),
    Mutation(
        11,
        "lm/adaptation/penalties.py",
        "return 0.5 * jnp.sum(\n        jnp.stack(",
        "return jnp.sum(\n        jnp.stack(",
        f"{PENALTIES}::test_a_penalised_loss_or_its_gradient_is_not_the_formula",
    ),
    Mutation(
        11,
        "lm/adaptation/penalties.py",
        "jnp.sum(information[name] * jnp.square(d))",
        "jnp.sum(jnp.square(d))",
        f"{PENALTIES}::test_a_penalised_loss_or_its_gradient_is_not_the_formula",
    ),
    Mutation(
        11,
        "lm/adaptation/penalties.py",
        "if not (l2_sp_strength or ewc_strength or kl_strength):",
        "if l2_sp_strength < 0:",
        f"{PENALTIES}::test_no_strength_is_another_program",
    ),
    Mutation(
        12,
        "lm/evaluation/likelihood.py",
        "inside = slice(length - scored, length)",
        "inside = slice(length - scored - 1, length - 1)",
        f"{LIKELIHOOD}::test_a_likelihood_is_off_by_one_or_sees_its_padding",
    ),
    Mutation(
        12,
        "lm/evaluation/likelihood.py",
        "begin = max(0, end - length)",
        "begin = start",
        f"{LIKELIHOOD}::test_a_texts_likelihood_is_not_the_sum_of_its_pieces",
    ),
]


def copied(folder: pathlib.Path) -> None:
    """Copy the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run(mutation: Mutation) -> tuple[str, str]:
    """("caught", "") if the test failed, else ("MISSED", pytest's output)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        copied(folder)
        file = folder / mutation.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            return (
                "MISSED",
                f"{mutation.old!r} is there {text.count(mutation.old)} times, expected once",
            )
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            mutation.node,
        ]
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return (
        ("caught", "")
        if done.returncode == FAILED
        else (
            "MISSED",
            f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}",
        )
    )


def main(argv: list[str]) -> int:
    unknown = [number for number in argv if number not in map(str, GOLD)]
    if unknown:
        print(
            f"error: no gold test {unknown[0]!r}; one of {', '.join(map(str, GOLD))}",
            file=sys.stderr,
        )
        return 2
    missed = 0
    for mutation in MUTATIONS:
        if argv and str(mutation.number) not in argv:
            continue
        start = time.monotonic()
        verdict, said = run(mutation)
        missed += verdict != "caught"
        print(
            f"{mutation.number:>2} {verdict} {time.monotonic() - start:4.0f} s  {mutation.file}: "
            f"{mutation.new.splitlines()[0]}",
            flush=True,
        )
        if said:
            print(f"   {mutation.node}\n   {said}", flush=True)
    print(f"{missed} missed" if missed else "all caught")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
