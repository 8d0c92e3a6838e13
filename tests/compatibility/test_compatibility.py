"""Every line of docs/compatibility.md is true, and the page is what the cases say."""

from __future__ import annotations

from itertools import groupby

import pytest
from compatibility.case import Case
from compatibility.table import PAGE, all_cases, page
from distributed import Client


@pytest.mark.cluster
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: f"{case.group}: {case.given}")
def test_what_the_table_says_is_so(case: Case, client: Client) -> None:
    case.check(client)


def test_the_page_is_written_from_the_cases() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.compatibility.table"


def test_no_group_or_line_comes_twice() -> None:
    groups = [group for group, _ in groupby(case.group for case in all_cases())]
    lines = [(case.group, case.given) for case in all_cases()]
    assert len(set(groups)) == len(groups)
    assert len(set(lines)) == len(lines)
