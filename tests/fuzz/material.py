"""One of everything that commands read, as small as it can be, and a line for every command that reads it."""

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpa.data import bundled_corpus

# A recipe of a model and a run so small that a step takes milliseconds.
RECIPE = """\
data: {seq_len: 32}
model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, rank: 8}
optim: {warmup_steps: 1}
train: {steps: 2, batch_size: 4, threads: 1, device: cpu, eval_tokens: 200, max_seconds: 5, loggers: []}
"""

TASK = """\
task: continuation
dataset_path: json
dataset_kwargs:
  data_files: questions.jsonl
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""

# Command -> a line that works, but for one, in a copy of the material, in about a second.
LINES = {
    "prepare": "prepare lines.jsonl notes.txt --vocab-size 300 --workers 1 --out out",
    "data stats": "data stats data",
    "data show": "data show data --num-samples 2",
    "data verify": "data verify data",
    "train": "train recipe.yaml --data.path data --out out",
    "runs": "runs run stopped",
    "eval perplexity": "eval perplexity run --data data --device cpu",
    "eval compare": "eval compare run merged --data data --device cpu",
    "eval minimal-pairs": "eval minimal-pairs run --pairs pairs.jsonl --device cpu",
    "eval glue": "eval glue run --tasks sst2 --data glue --seeds 1 --epochs 1 --out scores --device cpu",
    "eval harness": "eval harness run --tasks task.yaml --limit 2 --device cpu",
    "analyze": "analyze run --data notes.txt --tokens 64 --ranks 4 --device cpu --out out",
    "generate": "generate run --prompt We --max-new-tokens 4 --device cpu",
    "convert factorize": "convert factorize merged --rank 8 --calibration-data notes.txt "
    "--calibration-tokens 64 --device cpu --out out",
    "convert merge": "convert merge run --out out",
    "convert gguf": "convert gguf merged --out out.gguf",
    "convert import-published": "convert import-published published.safetensors --setting 2 "
    "--num-attention-heads 4 --seq-len 16 --out out",
    "push": "push run owner/name --dry-run",
    "plan": "plan run",
    "bench": "bench nano --seq-len 8 --batch-size 1 --rounds 1 --device cpu --figure out.svg",
    "presets": "presets --placement attention",
    "study": "study placement --scale tiny --seeds 1 --tuned tuned.yaml --data data --dry-run",
    "report": "report studies --out out.html",
    "demo": "demo --steps 1 --out data",  # refused, as two models take long
}

# More lines that read files of ours.
READERS = [
    "train recipe.yaml --data.path data --out stopped --resume",
    "train recipe.yaml --data.path data --out out --distill.teacher merged",
    "train --data.path data --model.from merged --train.steps 1 --data.seq_len 32 --out out",
    "eval perplexity run --data notes.txt --mode documents --device cpu",
    "convert factorize model.gguf --rank 8 --device cpu --out out",
    "convert factorize merged --ranks ranks.yaml --device cpu --out out",
    "generate model.gguf --prompt We --max-new-tokens 4 --device cpu",
    "prepare notes.txt --tokenizer merged --validation lines.jsonl --test lines.jsonl --out out",
    "prepare notes.txt --tokenizer data/tokenizer.json --out out",
    "plan run/final/config.json",
    "report studies --json",
]


def build(folder: Path, lpa: Callable[..., Any]) -> None:
    """Make the material with the commands themselves.

    Args:
        lpa: a `CommandServer`.
    """
    folder.mkdir()
    _write_texts(folder)

    def run(line: str) -> None:
        finished = lpa(*line.split(), cwd=folder)
        assert finished.code == 0, f"lpa {line}: {finished.stderr}"

    held_out = "--validation validation.txt --test notes.txt"
    run(f"prepare speech.txt {held_out} --vocab-size 300 --workers 1 --out data")
    run(
        "train recipe.yaml --data.path data --out run --train.sample_every 2 --train.sample_tokens 4"
    )
    run("train recipe.yaml --data.path data --out stopped --train.stop_at 2")
    for path in (folder / "run", folder / "stopped"):  # for what loggers note there, nobody asks
        for events in path.rglob("events*"):
            events.unlink()
    run("convert merge run --out merged")
    run("convert gguf merged --out model.gguf")
    run(LINES["eval glue"])
    finished = lpa("studies", "data", script=Path(__file__), cwd=folder)
    assert finished.code == 0, finished.stderr


def _write_texts(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "task.yaml").write_text(TASK)
    (folder / "ranks.yaml").write_text('"q_proj$": 8\n"v_proj$": 4\n')
    (folder / "tuned.yaml").write_text(
        "".join(f"{place}: {{optim.lr: 0.001}}\n" for place in ("none", "attention", "ffn", "all"))
    )
    with gzip.open(bundled_corpus("test")) as file:
        speech = json.loads(file.readline())["text"]
    (folder / "speech.txt").write_text(speech[:9000])
    (folder / "validation.txt").write_text(speech[9000:10000])
    words = "We the people of the United States, in order to form a more perfect union.\n"
    (folder / "notes.txt").write_text(words * 20)
    rows = [{"text": f"{n}. {words}"} for n in range(40)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    question = {"question": "We the", "choices": ["people", "xyzzy"], "answer": 0}
    (folder / "questions.jsonl").write_text((json.dumps(question) + "\n") * 2)
    pair = {"sentence_good": "We are.", "sentence_bad": "We is.", "UID": "agreement"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 2)
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for name in ("train", "dev"):
        pairs = [
            f"the {animal} sat {n} times\t{label}"
            for n in range(4)
            for label, animal in enumerate(("dog", "cat"))
        ]
        (folder / "glue" / "SST-2" / f"{name}.tsv").write_text(
            "\n".join(["sentence\tlabel", *pairs])
        )
    golden = Path(__file__).resolve().parents[3] / "shared" / "golden" / "setting2.safetensors"
    if golden.is_file():
        shutil.copy(golden, folder / "published.safetensors")
    else:  # then one that lacks what it should have
        (folder / "published.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")


def _study(out: Path, data: Path) -> None:
    """Dense and LPA of the tiny placement study, one seed each, in this process."""
    from lpa.data.manifest import Manifest
    from lpa.study.design.grid import expand_grid
    from lpa.study.execution.job_runner import create_jobs
    from lpa.study.execution.run_worker import train_and_score

    study = expand_grid("placement", "tiny", vocab_size=Manifest.load(data).vocab_size, steps=2)
    del study.variants[2:]
    for job in create_jobs(study, 1, out, data):
        import yaml

        from lpa.train.config import RunConfig

        train_and_score(RunConfig.from_dict(yaml.safe_load(job.recipe.read_text())), job.run)


if __name__ == "__main__":
    _study(*map(Path, sys.argv[1:]))
