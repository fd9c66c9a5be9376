"""Fixtures that every test may use."""

import gc
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, CommandServer, Finished

# Or a tenth of the time goes to searching, again and again, all that torch and transformers keep.
gc.set_threshold(100_000, 50, 1000)

# For torch, which is imported later. A child that is forked waits forever for threads of its parent's.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, saying so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; see scripts/gpu_check"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden vectors beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def lpa(tmp_path_factory) -> Iterator[CommandServer]:
    """Run the real command line in its own process: `lpa("train", …) -> Finished`."""
    server = CommandServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Iterator[Callable[..., Finished]]:
    """Run Python code, with arguments, in a process that has imported neither this package nor
    transformers, without a network."""
    folder = tmp_path_factory.mktemp("elsewhere")
    offline = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    server = CommandServer(folder, elsewhere=True, environment=offline)

    def run(code: str, *arguments: object) -> Finished:
        (folder / "script.py").write_text(code)
        return server(*arguments, script=folder / "script.py", cwd=folder)

    yield run
    server.close()


@pytest.fixture(scope="session")
def run_ranks(lpa) -> Callable[..., Any]:
    """Run a script of tests/train/workers as so many processes of one world, where torchrun itself does not
    matter; what they wrote as JSON to the path that they were given last."""

    def run(processes: int, name: str, *arguments: object) -> Any:
        script = Path(__file__).parent / "train" / "workers" / name
        finished = lpa(*arguments, script=script, processes=processes)
        assert finished.code == 0, finished.stderr
        return json.loads(Path(str(arguments[-1])).read_text())

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of `lpa train` for a tiny model."""
    return TINY


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """The bundled speeches of the test split, prepared with a small vocabulary.

    Runs validate on the first words of the validation speeches alone, or that would be most of their time.
    """
    from lpa.data import bundled_corpus, prepare

    folder = tmp_path_factory.mktemp("prepared")
    with gzip.open(bundled_corpus("validation"), "rt", encoding="utf-8") as speeches:
        words = [{"text": json.loads(speech)["text"][:3000]} for speech in speeches]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, words)) + "\n")
    prepare(
        [bundled_corpus("test")],
        folder / "data",
        vocab_size=300,
        validation=[folder / "validation.jsonl"],
        test_fraction=0.1,
    )
    return folder / "data"


@pytest.fixture(scope="session")
def run(tmp_path_factory, prepared, lpa) -> Path:
    """A finished run of a tiny model."""
    out = tmp_path_factory.mktemp("run") / "run"
    finished = lpa(
        *("train", "--data.path", prepared, "--out", out, "--train.steps", 8, *TINY),
        *("--train.eval_every", 4, "--train.eval_tokens", 500),
    )
    assert finished.code == 0, finished.stderr
    return out


@pytest.fixture(scope="session")
def merged(run, tmp_path_factory) -> Path:
    """A trained model as a stock Llama."""
    from lpa.convert.merge import merge_directory

    out = tmp_path_factory.mktemp("merged") / "llama"
    merge_directory(run / "final", out)
    return out


@pytest.fixture(scope="session")
def exported(merged, tmp_path_factory) -> Path:
    """It as a GGUF file of float32."""
    from lpa.convert.gguf.gguf_export import export_gguf

    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(merged, out, dtype="float32")
    return out


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory, prepared, lpa) -> Path:
    """Where a study of dense and LPA, two seeds each, was run to its end."""
    from helpers.study_runs import start_study

    out = tmp_path_factory.mktemp("study") / "out"
    assert start_study(lpa, out, prepared).wait(timeout=300) == 0
    return out


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory) -> Iterator[Any]:
    """One of everything that commands read, and a server of commands that no home directory helps."""
    from fuzz.harness import Fuzzer

    fuzzer = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield fuzzer
    fuzzer.close()
