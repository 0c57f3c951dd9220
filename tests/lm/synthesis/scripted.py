"""Generators for tests: they answer as a model might, and fail as a user's function might."""

from lm.synthesis.generator import Asked, Completion

NOUNS = ("river", "castle", "violin", "harvest", "engine", "island", "market", "winter")
VERBS = ("Describe", "Compare", "Count", "Explain", "Rewrite", "Summarise", "Invent", "Praise")


def words(key: int) -> tuple[str, str, str]:
    return (
        VERBS[key % 8],
        NOUNS[(key * 5 + key // 8 * 3) % 8],
        NOUNS[(key * 3 + key // 8) % 8],
    )


def fluent(prompts: list[str], asked: Asked) -> list[str | Completion]:
    """New instructions by request number, classification for "Count", and an instance each."""
    found: list[str | Completion] = []
    for key, prompt in zip(asked.keys, prompts, strict=True):
        if "Come up with" in prompt:
            verb, one, two = words(key)
            text = f" {verb} {one} number {key} beside {two}.\n10. Draw a map of it.\n11. Cut"
            found.append(Completion(text, False))
        elif prompt.endswith("Is it classification?"):
            found.append(
                " Yes" if f"Task: {VERBS[2]}" in prompt.splitlines()[-2] else " No\n\nTask"
            )
        elif prompt.endswith("Class label:"):
            text = " many\nThe shelves are full.\nClass label: few\nOne is left.\nClass label: x"
            found.append(Completion(text, False))
        else:
            found.append(
                f"\nExample 1\nthe {key}th one\nOutput: It is old.\nExample 2\nsame\nOutput: same\n"
                "Example 3\nlast\nOutput:"
            )
    return found


def alpaca(prompts: list[str], asked: Asked) -> list[str]:
    found = []
    for key in asked.keys:
        verb, one, two = words(key)
        found.append(
            f" {verb} {one} on day {key} with {two}.\n4. Input:\n<noinput>\n4. Output:\nFine."
            "\n###\n5. Instruction: Too short.\n5. Input:\nx\n5. Output:\ny\n###"
        )
    return found


def silent(prompts: list[str], asked: Asked) -> list[str]:
    return [""] * len(prompts)


def failing(prompts: list[str], asked: Asked) -> list[str]:
    raise RuntimeError("the service is away")


def short(prompts: list[str], asked: Asked) -> list[str]:
    return ["one"]
