import pytest
import torch

from lpa.errors import UserError
from lpa.eval.generate import generate_text
from lpa.eval.loading import load_with_tokenizer

PROMPT = "My fellow"


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
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; expected at least 1"),
        ({"max_new_tokens": 100}, "expected at most 32 together"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_p": 0.0}, "top_p: got 0.0; expected above 0 and up to 1"),
        ({"num_samples": 0}, "num_samples: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(run, options, message):
    with pytest.raises(UserError) as error:
        generate_text(run, PROMPT, device="cpu", **options)
    assert message in str(error.value)
