"""Models sharded over real processes: they start and train as one process's."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import sharded_models
from helpers.sharded_models import STARTS, TRAININGS, config_of, gathered, sharded, starts_in
from safetensors.torch import load_file

from lpa.train.distributed.dtensor import full_tensor, shard_like
from lpa.train.distributed.parallelize import ParallelLayout

# replicate, shard, tensor; by the number of processes.
# In one worker: the layouts of so many processes are run together, once.
pytestmark = pytest.mark.xdist_group("shards")

OF_TWO = ["1,2,1", "1,1,2"]  # replicas alone are tried in test_parallelize
OF_FOUR = ["1,2,2", "2,2,1"]
ALONE = ParallelLayout(1, 1, 1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, lpa):
    """Runs `layouts.py` once for each number of processes; tells the folder of a layout."""
    folder = tmp_path_factory.mktemp("layouts")

    @cache
    def run(together: tuple[str, ...]) -> None:
        processes = ParallelLayout(*map(int, together[0].split(",")))
        count = processes.data_parallel_size * processes.tensor
        script = Path(sharded_models.__file__)
        finished = lpa(folder, *together, script=script, processes=count)
        assert finished.code == 0, finished.stderr

    def of(layout: str) -> Path:
        run(tuple(OF_TWO if layout in OF_TWO else OF_FOUR))
        return folder / layout

    return of


every_layout = pytest.mark.parametrize(
    "layout", [pytest.param(layout, marks=pytest.mark.slow) for layout in (*OF_TWO, *OF_FOUR)]
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name"),
    [(layout, name) for layout in (*OF_TWO, *OF_FOUR) for name in starts_in(layout)],
)
def test_shards_start_with_the_bits_of_one_process(ran, layout, name):
    ours = load_file(ran(layout) / f"start-{name}.safetensors")
    alone = gathered(sharded(config_of(**STARTS[name]), ALONE))
    assert ours.keys() == alone.keys()
    for key in alone:
        assert torch.equal(ours[key], alone[key]), key


@every_layout
def test_no_process_holds_more_than_its_shards_while_a_model_is_made(ran, layout):
    grid = ParallelLayout(*map(int, layout.split(",")))
    for file in sorted(ran(layout).glob("rank-*.json")):
        memory = json.loads(file.read_text())["memory"]
        parts = grid.shard * grid.tensor
        if grid.tensor == 1:
            assert memory["held"] == memory["whole"] / parts
        # In each pair, tensor parallelism holds one factor whole.
        assert memory["whole"] / parts <= memory["held"] < memory["whole"] / parts * 1.1
        # At most a module of 3 MB comes on top, twice while it is copied, and Python's own.
        assert memory["grown"] < memory["held"] + 12e6


@cache
def trained_alone(name):
    """Weights before and after, and the losses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = gathered(sharded(config_of(**sharded_models.TRAINED), ALONE))
    model, losses = sharded_models.train(ALONE, TRAININGS[name], rank=0)
    torch.set_num_threads(threads)
    return start, gathered(model), losses


@every_layout
@pytest.mark.parametrize("name", TRAININGS)
def test_shards_train_to_the_weights_of_one_process(ran, layout, name):
    start, alone, losses = trained_alone(name)
    assert losses[-1] < 0.65 * losses[0]
    ours = load_file(ran(layout) / f"trained-{name}.safetensors")
    assert ours.keys() == alone.keys()
    for key in alone:
        # Gradients are summed in another order: float32's rounding, 1e-7 of what is summed. Six steps move
        # every weight by hundreds of times the tolerance.
        torch.testing.assert_close(ours[key], alone[key], rtol=0, atol=1e-5, msg=key)
        if not key.endswith("inv_freq"):
            assert (alone[key] - start[key]).abs().max() > 1e-3, key


@every_layout
@pytest.mark.parametrize("name", TRAININGS)
def test_losses_of_shards_are_those_of_one_process(ran, layout, name):
    _, _, alone = trained_alone(name)
    grid = ParallelLayout(*map(int, layout.split(",")))
    reports = [json.loads(file.read_text()) for file in sorted(ran(layout).glob("rank-*.json"))]
    # Those that see the same samples have the same loss; one of each adds to the whole.
    of_data = [report["losses"][name] for report in reports][:: grid.tensor]
    for step, loss in enumerate(alone):
        assert sum(losses[step] for losses in of_data) == pytest.approx(loss, rel=1e-5)


def test_plain_tensors_pass_through():
    tensor = torch.randn(3)
    assert full_tensor(tensor) is tensor
    assert shard_like(tensor, torch.zeros(3)) is tensor
