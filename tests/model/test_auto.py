"""`import lpa` makes the Auto classes know the model, in whichever order things are imported."""

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


@pytest.mark.xdist_group("elsewhere")
@pytest.mark.parametrize("imports", ORDERS)
def test_auto_classes_know_the_model(elsewhere, imports):
    done = elsewhere(f"{imports}\n{BUILD}")
    assert done.stdout.strip() == "LPAConfig LPAForCausalLM LPAModel", done.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers():
    script = "import sys, lpa; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
