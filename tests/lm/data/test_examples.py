"""The prompt of an example ends where its last answer begins."""

import dataclasses

from lm.data.records.examples import Example, Segment

ASKED, ANSWER, END, TAIL = (
    Segment("a", False),
    Segment("b", True),
    Segment("e", True, control=True),
    Segment("\n", False),
)


def test_an_earlier_answer_or_the_tail_is_taken_for_the_last_answer():
    example = Example((ASKED, ANSWER, END, TAIL, ASKED, ANSWER, END, TAIL))
    assert example.prompt == (ASKED, ANSWER, END, TAIL, ASKED)
    assert example.response == (ANSWER, END, TAIL)


def test_a_prompt_without_an_answer_loses_its_earlier_answers():
    segments = (ASKED, ANSWER, END, TAIL, ASKED)
    example = Example(segments, unanswered=True)
    assert (example.prompt, example.response) == (segments, ())
    assert dataclasses.replace(example, unanswered=False).prompt == (ASKED,)


def test_an_example_that_trains_nothing_has_an_answer():
    assert Example((ASKED, TAIL)).response == ()
