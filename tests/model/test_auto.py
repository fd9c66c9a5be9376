"""`import lpa` makes the Auto classes know the model, in whichever order things are imported."""

import json
import subprocess
import sys

import pytest

BUILD = """
config = transformers.AutoConfig.for_model("lpa", vocab_size=61, hidden_size=32,
    intermediate_size=80, num_hidden_layers=1, num_attention_heads=4, rank=8)
model = transformers.AutoModelForCausalLM.from_config(config)
print(type(config).__name__, type(model).__name__, type(model.model).__name__)
"""

ORDERS = [
    "import lpa\nimport transformers",
    "import transformers\nimport lpa",
    "import transformers\ntransformers.AutoModelForCausalLM\nimport lpa",
    "import lpa\nfrom lpa.model import LPAForCausalLM\nimport transformers",
    # Modules of transformers that ours needs itself, half imported when the Auto classes appear.
    "import lpa\nimport transformers\ntransformers.LlamaForCausalLM",
    "import lpa\nimport transformers\ntransformers.GenerationMixin",
    "import lpa\nimport transformers\ntransformers.pipeline",
]

# Each script in its own process, forked from one that has imported what all of them need and what
# comes before either package.
FORKS = """
import json, os, sys, traceback
import torch, numpy, safetensors, tokenizers, huggingface_hub
assert not {"lpa", "transformers"} & set(sys.modules)
for script in json.load(sys.stdin):
    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            exec(script, {})
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        print("----", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def printed():
    """What the script of each order prints."""
    scripts = json.dumps([f"{imports}\n{BUILD}" for imports in ORDERS])
    result = subprocess.run(
        [sys.executable, "-c", FORKS], input=scripts, capture_output=True, text=True
    )
    return dict(zip(ORDERS, result.stdout.split("----\n"), strict=False))


@pytest.mark.xdist_group("auto")
@pytest.mark.parametrize("imports", ORDERS)
def test_auto_classes_know_the_model(printed, imports):
    assert printed[imports].strip() == "LPAConfig LPAForCausalLM LPAModel"


def test_importing_the_package_imports_neither_torch_nor_transformers():
    script = "import sys, lpa; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
