"""`lpa.run_bench`, of arguments that the command line does not let through."""

import pytest

import lpa
from lpa.model import preset_config
from lpa.study.bench import run_bench as bench_module


def test_threads_below_zero_are_refused():
    with pytest.raises(lpa.UserError, match="--threads: got -1; expected at least 0"):
        lpa.run_bench("nano", threads=-1)


@pytest.mark.parametrize(("rank", "of_ffn"), [(None, 384), (128, 384), (64, 64)])
def test_another_rank_than_the_presets_is_measured_in_the_ffn_too(monkeypatch, rank, of_ffn):
    measured = []
    monkeypatch.setattr(
        bench_module, "measure_models", lambda config, *_, **__: measured.append(config)
    )
    for preset in ("paper-130m-s2", preset_config("paper-130m-s2")):
        bench_module.run_bench(preset, placement=["ffn"], rank=rank)
    assert [(config.rank, config.ffn_rank or config.rank) for config in measured] == [
        (rank or 128, of_ffn)
    ] * 2
