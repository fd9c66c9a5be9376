"""Pre-train language models with low-rank attention (LPA), beside their dense baselines.

Importing this package is cheap: torch and transformers load on first use of a name below. The Auto
classes of transformers know `model_type: lpa` from then on, whichever of the two is imported first.
"""

import importlib
from typing import TYPE_CHECKING, Any

import lazy_loader
import wrapt

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"train"},  # which can be called
    submod_attrs={
        "convert.conversion": ["factorize", "merge"],
        "data": ["prepare"],
        "errors": ["LPAWarning", "UserError"],
        "eval.compare": ["compare"],
        "eval.perplexity": ["evaluate_perplexity"],
        "lowrank": ["LowRankLinear", "break_even_rank"],
        "model": ["LPAConfig", "LPAForCausalLM", "LPAForSequenceClassification", "LPAModel"],
        "model.layers.latent_cache": ["LatentCache"],
        "model.hub.push": ["push"],
        "model.loading": ["load"],
        "study.bench.run_bench": ["run_bench"],
        "study.planning.plan": ["plan"],
        "study.report.study_report": ["write_report"],
        "study.run_study": ["run_study"],
        "train.config": ["RunConfig"],
        "train.run_table": ["list_runs"],
    },
)

if TYPE_CHECKING:
    from lpa.convert.conversion import factorize, merge
    from lpa.data import prepare
    from lpa.errors import LPAWarning, UserError
    from lpa.eval.compare import compare
    from lpa.eval.perplexity import evaluate_perplexity
    from lpa.lowrank import LowRankLinear, break_even_rank
    from lpa.model import LPAConfig, LPAForCausalLM, LPAForSequenceClassification, LPAModel
    from lpa.model.hub.push import push
    from lpa.model.layers.latent_cache import LatentCache
    from lpa.model.loading import load
    from lpa.study.bench.run_bench import run_bench
    from lpa.study.planning.plan import plan
    from lpa.study.report.study_report import write_report
    from lpa.study.run_study import run_study
    from lpa.train.config import RunConfig
    from lpa.train.run import train
    from lpa.train.run_table import list_runs


# These modules of transformers hold the Auto classes. They learn of this package as soon as they exist,
# so `import lpa` need not import transformers (seconds) to register with it.
@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_config(_: Any) -> None:
    importlib.import_module("lpa.model.auto").register_config()


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_models(_: Any) -> None:
    importlib.import_module("lpa.model.auto").register_models()


@wrapt.when_imported("peft.utils.constants")
def _register_default_targets(_: Any) -> None:
    importlib.import_module("lpa.model.adapters").register_default_targets()


@wrapt.when_imported("peft.tuners.lora.config")
def _register_low_rank_adapters(_: Any) -> None:
    importlib.import_module("lpa.model.adapters").register_low_rank_adapters()


@wrapt.when_imported("transformers.configuration_utils")
def _explain_run_directories(_: Any) -> None:
    importlib.import_module("lpa.model.auto").explain_run_directories()


@wrapt.when_imported("transformers.generation.configuration_utils")
def _register_cache_implementation(_: Any) -> None:
    importlib.import_module("lpa.model.auto").register_cache_implementation()


@wrapt.when_imported("transformers.modeling_utils")
def _register_saving(_: Any) -> None:
    importlib.import_module("lpa.model.hub.remote_code").register_saving()


@wrapt.when_imported("transformers.quantizers.auto")
def _register_quantizer(_: Any) -> None:
    importlib.import_module("lpa.model.auto").register_quantizer()
