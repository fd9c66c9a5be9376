"""Configuration, optimizer, loop, checkpoints and metrics of a training run.

The package can be called: `lpa.train(config, out)` is `lpa.train.run.train`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    """The package of this name, which Python puts in the place of a function `lpa.train`."""

    @property
    def __signature__(self) -> inspect.Signature:
        from lpa.train.run import train

        return inspect.signature(train)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from lpa.train.run import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _TrainPackage
