"""What no CPU can show: `scripts/gpu_check` runs these where there is a GPU; elsewhere they are skipped."""

import importlib.util
import warnings

import pytest
import torch
from helpers.matrix_products import MatrixProducts
from helpers.runs import assert_same_weights
from helpers.small_models import small_model
from helpers.small_runs import small_config, small_trainer

from lpa.device import peak_memory_bytes, resolve_device
from lpa.train.dry_run import plan_run
from lpa.train.run import train

pytestmark = pytest.mark.gpu

# 8 heads of 16: the narrowest that flash attention takes.
_WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8}


def gpu_trainer(data, **fields):
    return small_trainer(data, **({"device": "cuda", "dtype": "bfloat16"} | fields))


def one_step_loss(trainer) -> float:
    return trainer.train_step().loss


def test_auto_takes_the_gpu():
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda").index == 0
    assert torch.cuda.current_device() == 0


def test_every_product_of_a_step_is_bfloat16(prepared):
    trainer = gpu_trainer(prepared)
    batches = trainer.next_batches()
    with MatrixProducts() as products:
        trainer.forward_backward(batches, sum(batch.num_targets for batch in batches))
    assert products.dtypes == {torch.bfloat16}


def test_a_step_is_that_of_the_cpu(prepared):
    losses = [
        one_step_loss(gpu_trainer(prepared, device=device, dtype="float32"))
        for device in ("cpu", "cuda")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # other kernels add up in another order


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2", "flash_attention_3"])
def test_each_attention_gives_the_loss_of_sdpa(prepared, name):
    modules = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
    if name in modules and importlib.util.find_spec(modules[name]) is None:
        pytest.skip(f"{modules[name]} is not installed")
    losses = [
        one_step_loss(gpu_trainer(prepared, model=_WIDE | {"attn_implementation": kind}))
        for kind in ("sdpa", name)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bfloat16 has three digits


def test_compiled_layers_give_the_loss_of_eager_ones(prepared):
    losses = [one_step_loss(gpu_trainer(prepared, compile=value)) for value in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bfloat16 has three digits


def test_the_host_waits_at_most_once_a_step(prepared):
    trainer = gpu_trainer(prepared, batch_size=8, micro_batch_size=2)
    for _ in range(2):  # the first makes states and looks for kernels
        trainer.train_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 1, [str(wait.message) for wait in waits]


def test_memory_is_what_the_dry_run_says(prepared):
    fields = {"batch_size": 16, "model": _WIDE | {"num_hidden_layers": 6, "vocab_size": 32000}}
    trainer = gpu_trainer(prepared, **fields)
    trainer.train_step()
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step()
    config = small_config(prepared, device="cuda", dtype="bfloat16", **fields)
    planned = plan_run(config).peak_bytes_per_device
    # The dry run takes the CPU's kernels and chunks of the loss, and no work space.
    assert peak_memory_bytes(trainer.world.device) == pytest.approx(planned, rel=0.15)


def test_a_run_that_was_stopped_resumes_to_the_same_bits(prepared, tmp_path):
    def config(**fields):
        return small_config(prepared, device="cuda", dtype="bfloat16", steps=6, **fields)

    train(config(), tmp_path / "straight")
    train(config(stop_at=3), tmp_path / "stopped")
    train(config(), tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")


@pytest.mark.parametrize("cache", [None, "latent"])
def test_a_cache_on_the_gpu_gives_the_tokens_of_no_cache(cache):
    model = small_model().eval().to("cuda")
    ids = torch.randint(3, 60, (2, 5), device="cuda")
    options = {"max_new_tokens": 12, "do_sample": False}
    with torch.inference_mode():
        plain = model.generate(ids, use_cache=False, **options)
        kept = model.generate(ids, cache_implementation=cache, **options)
    assert torch.equal(plain, kept)
