"""Sends a model directory to the Hugging Face hub, and nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lpa.errors import UserError, first_line
from lpa.model.loading import model_directory
from lpa.model.weights import open_weights

# What a model directory holds that is of use to others. Anything else, such as the checkpoints and optimizer
# states that trainers leave there, stays.
_SHARED = (
    *("config.json", "generation_config.json", "README.md", "LICENSE*"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    *("configuration_lpa.py", "modeling_lpa.py", "modeling_low_rank.py"),
    "model.safetensors.index.json",
)


@dataclass(frozen=True)
class PushResult:
    """What was sent, or would be.

    Attributes:
        repo: its name on the hub, with that of the owner once it is known.
        files: name -> bytes.
        left: names in the directory that stay here.
        url: of the commit; None where nothing was sent.
    """

    repo: str
    files: dict[str, int]
    left: list[str]
    url: str | None = None


def push(model: str | Path, repo: str, *, private: bool = False) -> PushResult:
    """Sends a model to a repository of the Hugging Face hub, which is made where there is none.

    Sent are the weights, the configuration, the tokenizer, the card and the code that opens the model, and
    nothing else in the directory. Log in first: `hf auth login`, or set HF_TOKEN.

    Args:
        model: a run, of which `final/` is sent, or a Hugging Face directory.
        repo: NAME, or OWNER/NAME.
        private: make a repository that only its owner sees; one that is public already is refused.

    Returns:
        The files and their sizes, and what stays.

    Raises:
        UserError: no whole model there, no such owner, or the hub refuses or cannot be reached.

    Example:
        lpa.push("runs/lpa", "my-name/my-model", private=True)
    """
    return _send(model_directory(model), planned_push(model, repo), private)


def planned_push(model: str | Path, repo: str) -> PushResult:
    """What `push` would send; nothing is asked of the hub.

    Raises:
        UserError: no whole model there, or no such name.
    """
    directory = model_directory(model)
    _check_name(repo)
    weights = {path.name for path in open_weights(directory).files}
    files, left = {}, []
    for path in sorted(directory.iterdir()):
        shared = any(fnmatchcase(path.name, pattern) for pattern in _SHARED)
        if path.is_file() and (path.name in weights or shared):
            files[path.name] = path.stat().st_size
        elif not path.name.startswith("."):
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
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError(
            f"repo {planned.repo}: you are not logged in to the Hugging Face Hub; run `hf auth login`, or "
            "set HF_TOKEN"
        )
    api = HfApi(library_name="lpa")
    operations = [CommitOperationAdd(name, directory / name) for name in planned.files]
    with _refusals_of_the_hub(planned.repo):
        repo = api.create_repo(planned.repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo).private:
            raise UserError(
                f"repo {repo}: is public already, and --private asks for one that only its owner sees; make "
                "it private on the hub or choose another name"
            )
        commit = api.create_commit(repo, operations, commit_message="Upload model with lpa")
    return PushResult(repo, planned.files, planned.left, str(commit.commit_url))


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
