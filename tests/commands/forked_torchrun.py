"""torchrun, whose processes are forks of it and so need not import what it has imported."""

import importlib
import subprocess

from forking_popen import ForkingPopen

if __name__ == "__main__":
    # Before anything else is imported, as modules may keep the name.
    subprocess.Popen = ForkingPopen
    importlib.import_module("lpa.train.run")
    importlib.import_module("torch.distributed.run").main()
