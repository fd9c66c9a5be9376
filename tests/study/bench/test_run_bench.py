"""`lpa.run_bench`, of arguments that the command line does not let through."""

import pytest

import lpa


def test_threads_below_zero_are_refused():
    with pytest.raises(lpa.UserError, match="--threads: got -1; expected at least 0"):
        lpa.run_bench("nano", threads=-1)
