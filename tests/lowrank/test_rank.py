import warnings

import pytest

from lpa.errors import LPAWarning, UserError
from lpa.lowrank import break_even_rank, check_rank


def test_break_even_is_half_the_width_of_a_square_map():
    assert break_even_rank(768, 768) == 384


def test_break_even_of_an_oblong_map():
    assert break_even_rank(768, 2048) == pytest.approx(768 * 2048 / 2816)


def test_a_rank_below_break_even_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rank(383, 768, 768)


@pytest.mark.parametrize("rank", [384, 768])
def test_a_rank_that_saves_nothing_warns_and_names_break_even(rank):
    with pytest.warns(LPAWarning, match=rf"rank {rank} saves nothing.*up to 383"):
        check_rank(rank, 768, 768)


@pytest.mark.parametrize("rank", [0, 769, -3, 1.5, True, "8"])
def test_refuses_what_is_no_rank(rank):
    with pytest.raises(UserError, match=r"v_proj: got .*integer from 1 to 768"):
        check_rank(rank, 768, 2048, field="v_proj")
