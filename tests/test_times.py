"""The table of the tests' times."""

from pathlib import Path

from tests.times import SLOWEST, read, table

REPORT = """<testsuites><testsuite>
<testcase classname="tests.lm.test_a" name="one" file="tests/lm/test_a.py" line="3" time="1.5" />
<testcase classname="tests.lm.test_a" name="two" file="tests/lm/test_a.py" line="9" time="2.5">\
<skipped /></testcase>
<testcase classname="tests.lm.test_b" name="one" file="tests/lm/test_b.py" line="3" time="5.0" />
<testcase classname="tests.test_c" name="one" file="tests/test_c.py" line="3" time="1.0" />
</testsuite></testsuites>"""


def test_a_test_is_not_counted_or_the_slowest_is_not_first(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    lines = table(read(report), files=2)
    assert lines[0] == "4 tests, 10 s"
    rows = [line.split() for line in lines if line.split()[-1:] not in ([], ["folder"], ["file"])]
    assert rows[1:] == [
        ["9.0", "90.0%", "3", "tests/lm"],
        ["1.0", "10.0%", "1", "tests"],
        ["5.0", "50.0%", "1", "tests/lm/test_b.py"],
        ["4.0", "40.0%", "2", "tests/lm/test_a.py"],
    ]


def test_a_file_that_runs_first_was_moved():
    root = Path(__file__).parents[1]
    assert [file for file in SLOWEST if not (root / file).is_file()] == []


def test_no_tests_divide_by_zero():
    assert table([])[0] == "0 tests, 0 s"
