"""A user's first day, in one process."""

from tests import day_one


def test_a_first_day_ends_well(tmp_path):
    day = day_one.Day(tmp_path, day_one.in_this_process, steps=12)
    for part in day_one.PARTS:
        part(day)
