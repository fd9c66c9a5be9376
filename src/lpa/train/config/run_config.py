"""A whole run as its sections; what `config.yaml` holds."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import training_flops_per_token
from lpa.storage.records import parse_value, read_yaml
from lpa.train.config.field_ranges import require
from lpa.train.config.model_config import ModelConfig
from lpa.train.config.optim_config import OptimConfig
from lpa.train.config.sections import (
    DEFAULT_SEQ_LEN,
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    ParallelConfig,
)
from lpa.train.config.train_config import TrainConfig


@dataclass
class RunConfig:
    """A whole run; what `config.yaml` in a run directory holds.

    `data.seq_len` stays 0 only beside `model.from`, until the model that it names is opened.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        # As another configuration may share a section, and a field may have been set since it was checked.
        for section in fields(self):
            setattr(self, section.name, replace(getattr(self, section.name)))
        if not self.data.seq_len and self.model.from_ is None:
            self.data = replace(self.data, seq_len=DEFAULT_SEQ_LEN)
        if self.data.seq_len:
            self.train.resolve_length(self.data.seq_len)
            every = self.optim.restart_every
            require(
                every is None or every < self.train.steps,
                "optim.restart_every",
                every,
                f"fewer than the {self.train.steps} steps of the run; otherwise ReLoRA never merges",
            )

    def training_flops_per_token(self, model: LPAConfig) -> int:
        """FLOPs of a forward and a backward pass; matrices that are not trained have no gradient."""
        return training_flops_per_token(model, self.data.seq_len, trainable=self.optim.trainable)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by section and field."""
        sections = asdict(self)
        sections["data"]["path"] = str(self.data.path)
        source, teacher = sections["model"].pop("from_"), self.distill.teacher
        sections["model"]["from"] = None if source is None else str(source)
        sections["distill"]["teacher"] = None if teacher is None else str(teacher)
        return sections

    def checked(self) -> "RunConfig":
        """Copy the configuration, its fields checked and lengths resolved again, as some may have been set.

        Raises:
            UserError: a value that is not accepted.
        """
        return replace(self)

    def with_dtype(self, dtype: str) -> "RunConfig":
        """Copy the configuration with another precision, which takes the place of `auto`."""
        if dtype == self.train.dtype:
            return self
        return replace(self, train=replace(self.train, dtype=dtype))  # type: ignore[arg-type]

    def with_seq_len(self, seq_len: int) -> "RunConfig":
        """Copy the configuration with so many tokens per sample, where it says none."""
        if self.data.seq_len:
            return self
        return replace(self, data=replace(self.data, seq_len=seq_len))

    @classmethod
    def from_dict(cls, sections: dict[str, dict[str, Any]]) -> "RunConfig":
        """Builds a configuration from plain values by section and field, such as `to_dict` gives.

        A section or field that is missing has its default; only `data.path` must be given.

        Raises:
            UserError: a section, field or value that is not accepted.
        """
        kinds = get_type_hints(cls)
        built = {}
        for name, section in {"data": {}, **sections}.items():
            require(name in kinds, "section", name, f"one of {', '.join(kinds)}")
            values = section
            if name == "model" and isinstance(section, dict):
                # No field of a class can have the name of the key.
                values = {"from_" if key == "from" else key: section[key] for key in section}
            built[name] = parse_value(values, kinds[name], field=name)
        return cls(**built)

    @classmethod
    def load(cls, path: str | Path) -> "RunConfig":
        """The configuration in a YAML file.

        Raises:
            UserError: the file is damaged, or as `from_dict`.
        """
        sections = read_yaml(Path(path), dict[str, dict[str, Any]])
        try:
            config = cls.from_dict(sections)
            TrainConfig.check_lengths(sections.get("train", {}), config.data.seq_len)
            return config
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
