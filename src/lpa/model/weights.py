"""The files of weights in a Hugging Face directory, checked by their headers before a tensor is read."""

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lpa.errors import UserError
from lpa.storage.files import file_sha256
from lpa.storage.records import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Files that only unpickling reads, which may run any code.
_PICKLES = (
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.bin",
)
# transformers would read these in place of `model.safetensors`.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# transformers would put it on top of the weights, or follow it to weights elsewhere.
ADAPTER = "adapter_config.json"
ADAPTER_REFUSED = (
    f"{ADAPTER} makes it an adapter of peft, which is not opened; merge it into its base model "
    "(merge_and_unload, then save_pretrained), or remove the file"
)
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of a tensor.

    Attributes:
        dtype: as safetensors names it, such as `BF16`.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_floating(self) -> bool:
        """Whether its numbers are weights as they are, neither whole numbers nor of one byte."""
        return self.dtype in _FLOATING


@dataclass(frozen=True)
class Weights:
    """The weights of a directory.

    Attributes:
        field: what to call the directory in messages.
        files: in the order in which they are read.
        tensors: by the names in the files.
    """

    directory: Path
    field: str
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]

    @property
    def name(self) -> str:
        """What to call the file, or the files, in messages."""
        return _SINGLE if self.files[0].name == _SINGLE else _INDEX

    @property
    def elements(self) -> int:
        """Numbers of all tensors together."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def sha256(self) -> str:
        """SHA-256 of the files' own, one after another."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(bytes.fromhex(file_sha256(path)))
        return digest.hexdigest()

    def read(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each tensor by its name, one after another.

        Args:
            names: of those to read; all by default.

        Raises:
            UserError: a file became unreadable, or a tensor holds no floating-point numbers.
        """
        from safetensors import SafetensorError, safe_open

        for path in self.files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118, it is no dict
                        if names is not None and name not in names:
                            continue
                        if not self.tensors[name].is_floating:
                            raise self.error(path.name, self.not_floating(name))
                        yield name, file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise self.error(path.name, f"is damaged ({error})") from error

    def not_floating(self, name: str) -> str:
        return f"{name} is {self.tensors[name].dtype}; expected one of {', '.join(_FLOATING)}"

    def error(self, file: str, what: str) -> UserError:
        return UserError(f"{self.field} {self.directory}: {file} {what}")


def open_weights(directory: Path, field: str = "model") -> Weights:
    """Find the weights of a directory and read the headers of their files.

    Raises:
        UserError: there are none, only pickled ones, or a file is damaged; the file is named.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{field} {directory}: {what}")

    for path in sorted(directory.iterdir()):
        if _DISTRIBUTED.fullmatch(path.name):
            raise refuse(
                f"{path.name} is a part of a distributed checkpoint; expected one that save_pretrained "
                "writes without distributed_checkpoint"
            )
    if (directory / ADAPTER).is_file():
        raise refuse(ADAPTER_REFUSED)
    # Where both are there, transformers reads the one file.
    index = directory / _INDEX
    placed: dict[str, str] = {}
    names = [_SINGLE]
    if index.is_file() and not (directory / _SINGLE).is_file():
        placed = _weight_map(index, refuse)
        names = sorted(set(placed.values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise refuse(f"has no {absent[0]}{_pickle_beside(directory)}")
    headers = {name: _header(directory / name, refuse) for name in names}
    for tensor, name in placed.items():
        if tensor not in headers[name]:
            raise refuse(f"{_INDEX} places {tensor} in {name}, which has no such tensor")
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    return Weights(directory, field, tuple(directory / name for name in names), tensors)


def _pickle_beside(directory: Path) -> str:
    for pattern in _PICKLES:
        for path in sorted(directory.glob(pattern)):
            return (
                f"; {path.name} is a pickle, which could run code and is not opened; where you trust it, "
                "convert it with transformers: save_pretrained writes safetensors"
            )
    return ""


def _weight_map(index: Path, refuse: Any) -> dict[str, str]:
    try:
        placed = read_json(index, dict[str, Any]).get("weight_map")
    except UserError as error:
        raise refuse(f"{_INDEX} is damaged: {error}") from error
    if not isinstance(placed, dict) or not placed:
        raise refuse(f"{_INDEX} has no weight_map; expected the file of each tensor")
    for name in placed.values():
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise refuse(
                f"{_INDEX} names {name!r}; expected plain names of .safetensors files beside it"
            )
    return placed


def _header(path: Path, refuse: Any) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    # SafetensorError, the library's own, derives from Exception alone; others come from the file system.
    except Exception as error:
        raise refuse(f"{path.name} is damaged ({error})") from error
