import os

import pytest

from lpa.train.distributed import process_group
from lpa.train.distributed.process_group import NCCL_ENVIRONMENT


@pytest.mark.parametrize("own", [{}, {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "60"}])
def test_the_watchdog_is_set_unless_the_environment_says_otherwise(monkeypatch, own):
    for name in NCCL_ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    process_group._set_nccl_environment()
    assert {name: os.environ[name] for name in NCCL_ENVIRONMENT} == NCCL_ENVIRONMENT | own
