"""Every code block of the documents runs, and none is of a kind that this does not know."""

import ast
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from commands import Finished
from commands.program_shell import Shell
from doc_markdown import PAGES, ROOT, Block, blocks
from doc_material import Material, write_llama, write_sources
from doc_programs import PROGRAMS, Programs

from lpa.study.design.grid import expand_grid
from lpa.study.execution import run_worker
from lpa.study.execution.job_runner import create_jobs

pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture(scope="module")
def programs(lpa) -> Programs:
    return Programs(lpa)


@pytest.fixture(scope="module")
def shell(tmp_path_factory, programs) -> Iterator[Shell]:
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1"}
    shell = Shell(tmp_path_factory.mktemp("shell"), PROGRAMS, programs, job)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def material(tmp_path_factory, lpa, prepared) -> Material:
    """What blocks may be given, made by the commands that readers would give."""
    folder = tmp_path_factory.mktemp("material")
    run = Programs(lpa)

    def train(placement: str) -> Callable[[Path], None]:
        fields = f"--data.path {prepared} --model.placement {placement} --out"
        return lambda out: succeed(run("lpa", ["train", *fields.split(), str(out)], folder))

    def convert(out: Path) -> None:
        words = f"convert factorize {given.path('path/to/llama')} --rank-fraction 0.5 --out {out}"
        succeed(run("lpa", words.split(), folder))

    def train_study(out: Path) -> None:
        study = expand_grid("placement", "tiny", vocab_size=300, steps=2)
        del study.variants[2:]
        (out / "logs").mkdir(parents=True)
        for job in create_jobs(study, 1, out, prepared):
            worker = Path(run_worker.__file__)
            succeed(lpa(job.recipe, job.run, job.lock, script=worker))

    given = Material(
        folder,
        {
            "data": lambda out: shutil.copytree(prepared, out),
            "runs/lpa": train("attention"),
            "runs/dense": train("none"),
            "runs/studies": train_study,
            "path/to/llama": lambda out: write_llama(out, prepared / "tokenizer"),
            "converted": convert,
        },
    )
    return given


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page, tmp_path, monkeypatch, shell, programs, material):
    namespace: dict[str, object] = {"__name__": "__main__"}
    folder = None
    for number, block in enumerate(blocks(page)):
        if folder is None or block.fresh:
            folder = tmp_path / str(number) / "lpa"
            write_sources(folder)
            (folder / ".venv").mkdir()
            (folder / ".venv" / "bin").symlink_to(shell.bin)
            monkeypatch.chdir(folder)
        for name in block.given:
            material.give(name, folder)
        run_block(block, shell, programs, namespace, folder)


def run_block(
    block: Block, shell: Shell, programs: Programs, namespace: dict[str, object], folder: Path
) -> None:
    if block.language == "yaml":
        check_yaml(block)
    elif block.skip:
        assert block.language != "python" or ast.parse(block.code)
    elif block.language == "bash":
        programs.parse_only = bool(block.parse)
        done = shell.run(block.code, folder)
        assert done.code == 0, f"{block.where} ended with {done.code}:\n{done.stdout}{done.stderr}"
    elif block.language == "python":
        exec(compile(block.code, block.where, "exec"), namespace)
    else:
        pytest.fail(f"{block.where}: no way to test a block of the kind {block.language!r}")


def check_yaml(block: Block) -> None:
    """A recipe, tuned settings or the grid of a study, or part of one."""
    from lpa.train.config import RunConfig

    values = yaml.safe_load(block.code)
    if "variants" in values:
        settings = list(values["variants"].values())
    elif set(values) <= {"none", "attention", "ffn", "all"}:
        settings = list(values.values())
    else:
        RunConfig.from_dict({"data": {"path": "data"}, **values})
        return
    for fields in settings:
        sections: dict[str, dict[str, object]] = {"data": {"path": "data"}}
        for name, value in fields.items():
            if name != "match" and not str(value).startswith("d/"):
                section, field = name.split(".")
                sections.setdefault(section, {})[field] = value
        RunConfig.from_dict(sections)


def succeed(done: Finished) -> None:
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```bash\nlpa train --no-such-option 1\n```\n", "unknown option"),
        ("```bash\nlpa convert melt runs/lpa\n```\n", "unknown command"),
        ("```bash\npip install 'lpa[nothing]'\n```\n", "no such extra"),
        ("```bash\nmake nothing\n```\n", "ended with 2"),
        ("```bash\nfalse\nlpa --version\n```\n", "ended with 1"),
        ("<!-- test: {parse: long} -->\n```bash\nlpa bench 130m --rounds x\n```\n", "--rounds"),
        ("```python\nimport lpa\nlpa.nothing\n```\n", "nothing"),
        ("```yaml\ntrain: {step: 3}\n```\n", "step"),
        ("```yaml\nnone: {optim.rate: 3}\n```\n", "rate"),
        ("```\nlpa\n```\n", "no way to test"),
        ("Text\n\n    lpa train\n", "no way to test"),
    ],
)
def test_a_wrong_block_fails(text, wrong, tmp_path, monkeypatch, shell, programs):
    monkeypatch.setattr("doc_markdown.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    [block] = blocks(page)
    with pytest.raises(BaseException, match=wrong):  # pytest.fail raises no Exception
        run_block(block, shell, programs, {}, tmp_path)
