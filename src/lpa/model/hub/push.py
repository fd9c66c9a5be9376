"""Sends a model directory to the Hugging Face hub, and nothing else."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from lpa.errors import UserError, first_line
from lpa.model.loading import model_directory
from lpa.model.weights import open_weights

# What a model directory holds that is of use to others. Anything else, such as the checkpoints and optimizer
# states that trainers leave there, stays.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    "additional_chat_templates/*.jinja",
)
_MODEL = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("configuration_lpa.py", "modeling_lpa.py", "modeling_low_rank.py"),
)
_SHARED = (*_MODEL, *_TOKENIZER, "README.md", "LICENSE*")
# What an earlier model may have left in a repository, that transformers would open in place of the new one
# or on top of it.
_STALE = (
    *(*_MODEL, "*.safetensors", "*.safetensors.index.json"),
    *(
        "pytorch_model*.bin",
        "pytorch_model*.bin.index.json",
        "adapter_config.json",
        "adapter_model.bin",
    ),
    *("tf_model.h5", "flax_model.msgpack"),
)


@dataclass(frozen=True)
class PushResult:
    """What was sent, or would be.

    Attributes:
        repo: its name on the hub, with that of the owner once it is known.
        files: name -> bytes.
        left: names in the directory that stay here.
        deleted: files of an earlier model in the repository, which the commit deletes.
        url: of the commit; None where nothing was sent.
    """

    repo: str
    files: dict[str, int]
    left: list[str]
    deleted: list[str] = field(default_factory=list)
    url: str | None = None


def push(model: str | Path, repo: str, *, private: bool = False) -> PushResult:
    """Sends a model to a repository of the Hugging Face hub, which is made where there is none.

    Sent are the weights, the configuration, the tokenizer, the card and the code that opens the model, and
    nothing else in the directory. In a repository that holds another model its weights, configuration and
    code are deleted, and its tokenizer where another one is sent; all else stays. Log in first:
    `hf auth login`, or set HF_TOKEN.

    Args:
        model: a run, of which `final/` is sent, or a Hugging Face directory.
        repo: NAME, or OWNER/NAME.
        private: make a repository that only its owner sees; one that is public already is refused.

    Returns:
        The files and their sizes, what stays, and what was deleted.

    Raises:
        UserError: no whole model there, no such owner, or the hub refuses or cannot be reached.

    Example:
        lpa.push("runs/lpa", "my-name/my-model", private=True)
    """
    return _send(model_directory(model), planned_push(model, repo), private)


def planned_push(model: str | Path, repo: str) -> PushResult:
    """What `push` would send; nothing is asked of the hub, so not what it would delete.

    Raises:
        UserError: no whole model there, or no such name.
    """
    directory = model_directory(model)
    _check_name(repo)
    weights = {path.name for path in open_weights(directory).files}
    files: dict[str, int] = {}
    left: list[str] = []
    for path in sorted(directory.iterdir()):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        names = {file.relative_to(directory).as_posix(): file for file in inside if file.is_file()}
        sent = [name for name in names if name in weights or _is_one_of(name, _SHARED)]
        files |= {name: names[name].stat().st_size for name in sent}
        if not sent and not path.name.startswith("."):
            left.append(f"{path.name}/" if path.is_dir() else path.name)
    return PushResult(repo, files, left)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"repo: got {repo!r}; expected NAME or OWNER/NAME ({first_line(error)})"
        ) from error


def _send(directory: Path, planned: PushResult, private: bool) -> PushResult:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise UserError(
            f"repo {planned.repo}: you are not logged in to the Hugging Face Hub; run `hf auth login`, or "
            "set HF_TOKEN"
        )
    api = HfApi(library_name="lpa")
    added = [CommitOperationAdd(name, directory / name) for name in planned.files]
    with _refusals_of_the_hub(planned.repo):
        repo = api.create_repo(planned.repo, private=private or None, exist_ok=True).repo_id
        info = api.model_info(repo)
        if private and not info.private:
            raise UserError(
                f"repo {repo}: is public already, and --private asks for one that only its owner sees; make "
                "it private on the hub or choose another name"
            )
        deleted = _stale_files([file.rfilename for file in info.siblings or ()], planned.files)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*added]
        operations += [CommitOperationDelete(name) for name in deleted]
        commit = api.create_commit(repo, operations, commit_message="Upload model with lpa")
    return replace(planned, repo=repo, deleted=deleted, url=str(commit.commit_url))


def _stale_files(present: Collection[str], sent: Collection[str]) -> list[str]:
    """The files of an earlier model in a repository that nothing takes the place of."""
    patterns = (*_STALE, *_TOKENIZER) if any(_is_one_of(n, _TOKENIZER) for n in sent) else _STALE
    return sorted(name for name in present if name not in sent and _is_one_of(name, patterns))


def _is_one_of(path: str, patterns: Collection[str]) -> bool:
    """Whether a path matches a pattern of as many parts."""
    return any(
        fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns
    )


@contextmanager
def _refusals_of_the_hub(repo: str) -> Iterator[None]:
    """What the hub says, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        hint = {
            401: "; run `hf auth login`, or set HF_TOKEN",
            403: "; your token may not write there",
        }
        said = " ".join((error.server_message or first_line(error)).split())
        raise UserError(
            f"repo {repo}: the hub refused with status {code} ({said}){hint.get(code, '')}"
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(f"repo {repo}: the hub cannot be reached ({first_line(error)})") from error
