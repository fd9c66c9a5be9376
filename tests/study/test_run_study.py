"""`lpa.run_study`, of arguments that the command line does not let through."""

import pytest

import lpa


@pytest.mark.parametrize("name", ["seeds", "jobs"])
def test_fewer_than_one_is_refused_before_anything_is_written(name, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(lpa.UserError, match=rf"--{name}: got 0; expected at least 1"):
        lpa.run_study("placement", out, scale="tiny", **{name: 0})
    assert not out.exists()
