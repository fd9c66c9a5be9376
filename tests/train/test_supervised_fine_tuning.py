"""A model of ours in TRL's SFTTrainer, with the tokenizer that `lpa prepare --chat-template` trains."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import lpa as package

trl = pytest.importorskip("trl")

TALK = [
    {"role": "user", "content": "Who governs?"},
    {"role": "assistant", "content": "The people."},
]


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory, lpa, tiny):
    folder = tmp_path_factory.mktemp("chat")
    text = "We the people of the United States, in order to form a more perfect union.\n" * 60
    (folder / "train.txt").write_text(text)
    (folder / "valid.txt").write_text(text[:2000])
    words = (
        "prepare train.txt --validation valid.txt --vocab-size 300 --chat-template chatml --out d"
    )
    prepared = lpa(*words.split(), cwd=folder)
    assert prepared.code == 0, prepared.stderr
    options = ["--data.path", "d", "--out", "run", "--train.steps", 2, *tiny]
    trained = lpa("train", *options, "--data.seq_len", 96, cwd=folder)
    assert trained.code == 0, trained.stderr
    return folder / "run" / "final"


def test_the_tokenizer_has_template_special_tokens_and_length(chat_run):
    tokenizer = AutoTokenizer.from_pretrained(chat_run)
    assert tokenizer.model_max_length == 96
    shown = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert shown == (
        "<|im_start|>user\nWho governs?<|im_end|>\n<|im_start|>assistant\nThe people.<|im_end|>\n"
    )
    ids = tokenizer(shown)["input_ids"]
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")]
    assert [ids.count(mark) for mark in marks] == [2, 2]  # one token each
    assert tokenizer.decode(ids) == shown


@pytest.mark.parametrize("packing", [True, False])
def test_fine_tuning_lowers_the_loss(chat_run, tmp_path, packing):
    from datasets import Dataset

    model = AutoModelForCausalLM.from_pretrained(chat_run)
    assert type(model) is package.LPAForCausalLM
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(chat_run),
        train_dataset=Dataset.from_list([{"messages": TALK}] * 16),
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_length=96,
            packing=packing,
            max_steps=12,
            per_device_train_batch_size=2,
            learning_rate=2e-2,
            logging_steps=3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    row = trainer.train_dataset[0]["input_ids"]
    tokenizer = trainer.processing_class
    assert tokenizer.decode(row).startswith(
        "<|im_start|>user\nWho governs?<|im_end|>\n<|im_start|>"
    )
    one = len(tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"])
    assert (len(row) > one) == packing
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prepare x --tokenizer y --chat-template chatml --out o", "works only with --vocab-size"),
        ("prepare x --vocab-size 257 --chat-template chatml --out o", "expected at least 259"),
    ],
)
def test_a_template_that_cannot_be_is_refused(line, words, lpa, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("We the people " * 100)
    finished = lpa(*line.split(), cwd=tmp_path)
    assert finished.code == 2
    assert words in finished.stderr
    assert not (tmp_path / "o").exists()
