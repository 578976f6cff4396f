"""The configuration of a training run. Frozen, complete, hashed, and free of torch.

Every key does something: an unknown one is refused. Defaults that do not depend on the scale stand here; the presets
(``fixtures/presets``) hold what does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from harness.errors import HarnessError
from harness.hashing import sha256_json


class ConfigError(HarnessError):
    """A key or value of a run's configuration does not fit. The message gives its path and what was expected."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, types are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """What the model reads. context_target is the length, in tokens, that the model must use at this scale."""

    corpus: str = Field(default="sotu", min_length=1)
    vocab_size: int = Field(default=16384, ge=2, le=65535)
    tokenizer: Literal["bpe", "byte"] = "bpe"
    seq_len: int = Field(default=256, ge=1)
    context_target: int = Field(default=512, ge=1)


class BatchTokens(Section):
    """Tokens of one optimizer step, by device."""

    cpu: int = Field(default=512, ge=1)
    cuda: int = Field(default=16384, ge=1)


class TrainConfig(Section):
    """How the model is trained.

    The learning rate rises over ``warmup_steps``, stays at ``lr``, and falls linearly to ``min_lr_ratio * lr`` over
    the last ``decay_fraction`` of the steps. Two runs that differ in ``steps`` alone are the same run until the
    shorter one begins to decay.

    grad_accumulation   micro-batches a step; ``batch_tokens`` is the whole step
    *_lr_mult           multiplies ``lr`` for the mixer parameters of that branch
    threads             CPU threads: part of the configuration because sums depend on it
    save_every          steps between resumable checkpoints
    checkpoint_steps    steps whose weights are kept; those of the last step always are
    dtype               of the matrix products; auto is float32 on CPU and bfloat16 autocast on CUDA
    execution           of an update (harness.step); auto is graphed where that can be, else eager

    Two remedies for a branch that is not used, both off unless set (harness.remedies says what each does):
    state_grad_clip     largest L2 norm of a state's gradient where a row is cut in halves; eager updates
    coupling_loss       weight of the squared difference of the logarithms of what two branches write; eager updates
    """

    steps: int = Field(default=1000, ge=1)
    batch_tokens: BatchTokens = BatchTokens()
    grad_accumulation: int = Field(default=1, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    mamba_lr_mult: float = Field(default=0.5, ge=0)
    rwkv_lr_mult: float = Field(default=1.0, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)
    threads: int = Field(default=2, ge=1)
    save_every: int = Field(default=200, ge=1)
    checkpoint_steps: tuple[int, ...] = ()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    execution: Literal["auto", "eager", "graphed"] = "auto"
    state_grad_clip: float | None = Field(default=None, gt=0)
    coupling_loss: float = Field(default=0.0, ge=0)

    @property
    def decay_steps(self) -> int:
        """Steps over which the learning rate falls."""
        return round(self.decay_fraction * self.steps)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and the decay over {self.decay_steps} steps (decay_fraction "
                f"{self.decay_fraction:g}) do not fit into steps {self.steps}; lower train.warmup_steps"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        outside = [step for step in self.checkpoint_steps if not 0 < step <= self.steps]
        if outside:
            raise ValueError(f"checkpoint_steps must lie in 1 .. {self.steps} (steps), got {outside}")
        return self


class EvalConfig(Section):
    """Validation: every ``every_steps`` steps on about ``tokens`` tokens, once at the end on ``final_tokens``."""

    every_steps: int = Field(default=50, ge=1)
    tokens: int = Field(default=20_000, ge=1)
    final_tokens: int = Field(default=200_000, ge=1)


class MonitorConfig(Section):
    """What is watched. stop ends a run at its first STOP; otherwise the STOP is recorded and the run goes on.

    update_every   steps between measurements of the update ratio, which costs a copy of the mixer weights
    probe_every    steps between looks at states, writes and gates; also at the end of the warm-up and at the last step
    """

    update_every: int = Field(default=20, ge=1)
    probe_every: int = Field(default=50, ge=1)
    stop: bool = False


class RunConfig(Section):
    """Everything about a training run but the model, the seed and the device."""

    scale: str
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    monitors: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _whole_windows(self) -> Self:
        unit = self.data.seq_len * self.train.grad_accumulation
        for device, tokens in self.train.batch_tokens:
            if tokens % unit:
                raise ValueError(
                    f"train.batch_tokens.{device} {tokens} is not a multiple of data.seq_len x train.grad_accumulation "
                    f"= {self.data.seq_len} x {self.train.grad_accumulation} = {unit}"
                )
        for name, tokens in (("tokens", self.eval.tokens), ("final_tokens", self.eval.final_tokens)):
            if tokens < self.data.seq_len:
                raise ValueError(f"eval.{name} {tokens} is less than one window of data.seq_len {self.data.seq_len}")
        if self.train.state_grad_clip is not None and self.data.seq_len < 2:
            raise ValueError(
                "train.state_grad_clip cuts every row in halves, but data.seq_len is 1; give at least 2 or leave it out"
            )
        return self


def config_sha256(config: RunConfig) -> str:
    """Hash of a configuration: equal exactly when every value is equal."""
    return sha256_json(config.model_dump(mode="json"))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; ``source`` names it in errors. Raises ``ConfigError``."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected a mapping of sections, got {type(value).__name__}")
    return value


def validate_config(raw: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration that a plain mapping describes. Raises ``ConfigError`` with one line a mistake."""
    # through JSON, so that a list is a tuple and yet nothing else is coerced; a YAML date turns into text
    text = json.dumps(raw, default=str)
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(details)}" for details in error.errors())) from error


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``raw`` with each ``section.key=value`` set, values read as YAML. Raises ``ConfigError``."""
    result = _copy(raw)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: expected SECTION.KEY=VALUE, for instance --set train.steps=2000")
        _require_key(override, keys)
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
        section = result
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
    return result


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in raw.items()}


def _require_key(override: str, keys: Sequence[str]) -> None:
    """Refuse a path that leads nowhere, or to a whole section: setting one would reset its other keys unseen."""
    section = _section_at(keys[:-1])
    if section is None or keys[-1] not in section.model_fields:
        raise ConfigError(f"--set {override}: {_unknown_key(keys)}")
    whole = _section_at(keys)
    if whole is not None:
        inside = ", ".join(".".join([*keys, name]) for name in whole.model_fields)
        raise ConfigError(f"--set {override}: {'.'.join(keys)} is a section; set one of its keys: {inside}")


def _section_at(keys: Sequence[str]) -> type[Section] | None:
    """The section that a path leads to; None when it leads to a value or nowhere."""
    section: type[Section] = RunConfig
    for key in keys:
        field = section.model_fields.get(key)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return None
        section = field.annotation
    return section


def _all_paths(section: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    paths = []
    for name in section.model_fields:
        inner = _section_at([*prefix.split(".")[:-1], name])
        paths += [prefix + name] if inner is None else _all_paths(inner, f"{prefix}{name}.")
    return paths


def _unknown_key(keys: Sequence[str]) -> str:
    path = ".".join(keys)
    near = get_close_matches(path, _all_paths(), n=1) or [p for p in _all_paths() if p.split(".")[-1] == keys[-1]]
    hint = f" Did you mean {near[0]}?" if near else ""
    known = next(keys[:end] for end in range(len(keys) - 1, -1, -1) if _section_at(keys[:end]) is not None)
    section = _section_at(known)
    assert section is not None
    where = ".".join(known) or "the configuration"
    return f"unknown key {path}.{hint} Keys of {where}: {', '.join(section.model_fields)}"


def _explain(details: ErrorDetails) -> str:
    keys = [str(part) for part in details["loc"]]
    path = ".".join(keys)
    if details["type"] == "extra_forbidden":
        return _unknown_key(keys)
    if details["type"] == "missing":
        return f"{path} is missing"
    if details["type"] == "value_error":
        # our own validators: the text after "Value error, " is the message
        return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
    got = details["input"]
    return f"{path}: got {got!r} ({type(got).__name__}); {details['msg'][0].lower()}{details['msg'][1:]}"


class _Loader(yaml.SafeLoader):
    """YAML whose floats may be written 2e-3: YAML 1.1 reads that as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
