"""What is sent to the hub, against an endpoint on this machine that answers as the hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import transformers.utils.hub
from helpers.architectures import tiny
from helpers.small_models import small_model

import lpa
from lpa.errors import UserError
from lpa.model.hub.push import planned_push

MINE = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
MINE |= {"configuration_lpa.py", "modeling_lpa.py"}
OTHERS = [
    "optimizer.pt",
    "training_args.bin",
    "rng_state.pth",
    "trainer_state.json",
    ".env",
    "notes.txt",
]


class Hub(ThreadingHTTPServer):
    """Keeps what it receives.

    Attributes:
        exists_publicly: whether there is a public repository of every name.
        refusal: status and message of every answer, where there is one.
        present: files in the repository.
        deleted: those that a commit deletes.
    """

    exists_publicly = False
    refusal = None
    present = ()

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.created, self.files, self.deleted = [], {}, []
        self.repo_url = f"http://127.0.0.1:{self.server_port}/me/model"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if "/resolve/" in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        siblings = [{"rfilename": name} for name in self.server.present]
        private = not self.server.exists_publicly
        return self.answer({"id": "me/model", "private": private, "siblings": siblings})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.refusal:
            status, message = self.server.refusal
            return self.answer({"error": message}, status)
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            url = self.server.repo_url
            status = 409 if self.server.exists_publicly else 200
            return self.answer({"url": url}, status)
        if self.path.endswith("/validate-yaml"):  # of the card
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        assert "/commit/" in self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                self.server.deleted.append(line["value"]["path"])
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        return self.answer(
            {"commitOid": "0" * 40, "commitUrl": f"{self.server.repo_url}/commit/{'0' * 40}"}
        )

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    urls = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def directory(tmp_path):
    """A model among what trainers leave beside one."""
    small_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# A model")
    for name in OTHERS:
        (tmp_path / name).write_text("mine alone")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_text("old")
    (tmp_path / "old.safetensors").write_text("old")
    return tmp_path


def test_the_model_is_sent_and_nothing_else(hub, directory):
    result = lpa.push(directory, "me/model", private=True)
    assert hub.files.keys() == result.files.keys() == MINE
    for name, content in hub.files.items():
        assert content == (directory / name).read_bytes()
        assert result.files[name] == len(content)
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert result.url == f"{hub.repo_url}/commit/{'0' * 40}"


def test_all_chat_templates_are_sent(hub, directory):
    (directory / "additional_chat_templates").mkdir()
    for name in ("tool_use.jinja", "notes.txt"):
        (directory / "additional_chat_templates" / name).write_text("{{ messages }}")
    hub.present = ["additional_chat_templates/old.jinja", "figures/old.jinja"]
    result = lpa.push(directory, "me/model")
    assert hub.files.keys() == {*MINE, "additional_chat_templates/tool_use.jinja"}
    assert result.deleted == ["additional_chat_templates/old.jinja"]


def test_nothing_of_an_earlier_model_stays_in_force(hub, directory):
    stale = ["adapter_config.json", "adapter_model.safetensors", "modeling_low_rank.py"]
    stale += [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    stale += ["model.safetensors.index.json", "pytorch_model.bin"]
    kept = [".gitattributes", "LICENSE", "figure.png", "results.json", "onnx/model.safetensors"]
    tokenizer = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    hub.present = [*stale, *kept, *tokenizer, "README.md", "config.json", "model.safetensors"]
    assert lpa.push(directory, "me/model").deleted == hub.deleted == sorted(stale)
    hub.deleted.clear()
    for name in tokenizer[:2]:
        (directory / name).write_text("{}")
    assert lpa.push(directory, "me/model").deleted == sorted([*stale, tokenizer[2]])


def test_a_dry_run_says_what_is_sent_and_what_stays(directory, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = planned_push(directory, "me/model")
    assert result.files.keys() == MINE
    assert set(result.left) == {*OTHERS, "checkpoint-10/", "old.safetensors"} - {".env"}
    assert result.url is None


def other_class():
    model = tiny("gpt2")
    lpa.factorize(model, rank=4)
    return model


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (small_model, {"configuration_lpa.py", "modeling_lpa.py"}),
        (other_class, {"modeling_low_rank.py"}),
    ],
)
def test_save_pretrained_pushes_the_code_too(build, code, hub, tmp_path):
    build().save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/model")
    assert code <= hub.files.keys()
    assert "auto_map" in json.loads(hub.files["config.json"])


def test_private_is_never_made_public(hub, directory):
    hub.exists_publicly = True
    with pytest.raises(UserError, match="public already, and --private asks"):
        lpa.push(directory, "me/model", private=True)
    assert not hub.files


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (401, "Invalid user token", r"status 401 \(.*Invalid user token.*\); run `hf auth login`"),
        (403, "Forbidden", r"status 403 \(.*Forbidden.*\); your token may not write"),
        (500, "Broken\nin two lines", "status 500"),
    ],
)
def test_a_refusal_is_one_line(hub, directory, status, message, said):
    hub.refusal = (status, message)
    with pytest.raises(UserError, match=said) as error:
        lpa.push(directory, "me/model")
    assert "\n" not in str(error.value)


def test_no_hub_no_token_and_no_name(directory, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(UserError, match="repo me/model: the hub cannot be reached"):
        lpa.push(directory, "me/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login"):
        lpa.push(directory, "me/model")
    for name in ("", "a b", "a/b/c", "../x", "a--b"):
        with pytest.raises(UserError, match=r"repo: got .*; expected NAME or OWNER/NAME"):
            lpa.push(directory, name)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        lpa.push(directory, "me/model")
