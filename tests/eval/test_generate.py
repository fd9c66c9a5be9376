import json
import shutil

import pytest
import torch
from helpers.small_models import save_small_bloom

from lpa.errors import UserError
from lpa.eval.generate import generate_text
from lpa.eval.loading import load_with_tokenizer

PROMPT = "My fellow"


def with_generation_config(run, out, fields):
    """The model of the run with more in its generation_config.json."""
    shutil.copytree(run / "final", out / "model")
    path = out / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return out / "model"


def test_greedy_text_is_the_likeliest_token_each_time(run):
    [text] = generate_text(run, PROMPT, temperature=0, max_new_tokens=10, device="cpu")
    model, tokenizer = load_with_tokenizer(run, "cpu")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    for _ in range(10):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text == tokenizer.decode(ids[0])


def test_a_seed_gives_the_same_samples_and_another_seed_others(run):
    options = {"max_new_tokens": 12, "num_samples": 3, "device": "cpu"}
    first = generate_text(run, PROMPT, seed=1, **options)
    assert len(set(first)) == 3
    assert all(text.startswith(PROMPT) for text in first)
    assert generate_text(run, PROMPT, seed=1, **options) == first
    assert generate_text(run, PROMPT, seed=2, **options) != first


def test_as_much_is_added_as_there_is_room_for(run):
    [text] = generate_text(run, PROMPT, temperature=0, device="cpu")
    _, tokenizer = load_with_tokenizer(run, "cpu")
    most = 32 - len(tokenizer(PROMPT)["input_ids"])
    assert text == generate_text(run, PROMPT, temperature=0, max_new_tokens=most, device="cpu")[0]
    with pytest.raises(UserError, match="expected at most 32 together"):
        generate_text(run, PROMPT * 20, device="cpu")


def test_an_empty_prompt_begins_a_document(run):
    [text] = generate_text(run, "", max_new_tokens=5, device="cpu")
    assert text


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.5},
        {"num_beams": 4},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 2, "num_return_sequences": 2},
        {"min_new_tokens": 12, "suppress_tokens": list(range(40, 120))},
    ],
)
def test_only_the_arguments_say_how_a_text_is_generated(run, tmp_path, fields):
    options = {"temperature": 0, "max_new_tokens": 12, "device": "cpu"}
    model = with_generation_config(run, tmp_path, fields)
    assert generate_text(model, PROMPT, **options) == generate_text(run, PROMPT, **options)


def test_samples_are_drawn_as_the_arguments_say(run, tmp_path):
    options = {"max_new_tokens": 12, "num_samples": 2, "device": "cpu"}
    model = with_generation_config(run, tmp_path, {"min_p": 0.9, "typical_p": 0.1})
    assert generate_text(model, PROMPT, **options) == generate_text(run, PROMPT, **options)


def test_a_temperature_next_to_zero_is_zero(run):
    texts = [
        generate_text(run, PROMPT, temperature=value, max_new_tokens=10, device="cpu")
        for value in (0, 1e-40, 1e-9)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_text_ends_where_the_model_says_too(run, tmp_path):
    """As at the end of a turn of chat."""
    [text] = generate_text(run, PROMPT, temperature=0, max_new_tokens=8, device="cpu")
    _, tokenizer = load_with_tokenizer(run, "cpu")
    prompt = tokenizer(PROMPT)["input_ids"]
    added = tokenizer(text)["input_ids"][len(prompt) :]
    ends = {"eos_token_id": [tokenizer.eos_token_id, added[1]]}
    model = with_generation_config(run, tmp_path, ends)
    options = {"temperature": 0, "max_new_tokens": 8, "device": "cpu"}
    [shorter] = generate_text(model, PROMPT, **options)
    assert shorter == tokenizer.decode([*prompt, *added[: 1 + added.index(added[1])]])
    assert len(shorter) < len(text)


def test_a_model_whose_positions_have_no_end(run, tmp_path):
    bloom = save_small_bloom(run, tmp_path / "bloom")
    [text] = generate_text(bloom, PROMPT, max_new_tokens=4, device="cpu")
    assert text.startswith(PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens: got 0; expected at least 1"),
        ({"max_new_tokens": 100}, "expected at most 32 together"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_p": 0.0}, "--top-p: got 0.0; expected above 0 and up to 1"),
        ({"num_samples": 0}, "--num-samples: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(run, options, message):
    with pytest.raises(UserError) as error:
        generate_text(run, PROMPT, device="cpu", **options)
    assert message in str(error.value)
