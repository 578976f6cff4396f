"""The configuration: complete, frozen, hashed; a mistake is named with its path."""

import pytest
from pydantic import ValidationError

from fixtures.presets import PRESETS, load_preset
from harness.config import ConfigError, TrainConfig, config_sha256, parse_yaml, validate_config


@pytest.mark.parametrize("scale", PRESETS)
def test_every_preset_loads_by_scale_and_by_name(scale):
    config = load_preset(scale)
    assert config.scale == scale
    assert config == load_preset(PRESETS[scale])
    # a trend needs 20 evaluations
    assert config.train.steps // config.eval.every_steps >= 20


def test_the_context_targets_are_those_of_the_design():
    assert [load_preset(scale).data.context_target for scale in PRESETS] == [512, 1024, 2048, 4096]
    tiny = load_preset("tiny")
    assert (tiny.data.seq_len, tiny.train.batch_tokens.cpu, tiny.train.batch_tokens.cuda) == (256, 512, 16384)


def test_overrides_are_typed_as_yaml_and_the_last_one_wins():
    overrides = ["train.steps=2000", "train.lr=3e-3", "monitors.stop=true", "train.checkpoint_steps=[500, 1000]"]
    config = load_preset("tiny", [*overrides, "train.batch_tokens.cpu=256", "train.steps=3000"])
    assert config.train.steps == 3000
    assert config.train.lr == 3e-3
    assert config.monitors.stop is True
    assert config.train.checkpoint_steps == (500, 1000)
    assert (config.train.batch_tokens.cpu, config.train.batch_tokens.cuda) == (256, 16384)


def test_a_shorter_training_keeps_those_checkpoints_of_the_preset_that_it_reaches():
    assert load_preset("tiny").train.checkpoint_steps == (50, 200, 500)
    assert load_preset("tiny", ["train.steps=200"]).train.checkpoint_steps == (50, 200)
    asked_for = ["train.steps=300", "train.checkpoint_steps=[50, 200, 500]"]
    with pytest.raises(ConfigError, match=r"checkpoint_steps must lie in 1 \.\. 300"):
        load_preset("tiny", asked_for)


@pytest.mark.parametrize("preset", ["tiny", "small", "medium", "large"])
def test_a_training_is_probed_twenty_times_by_default(preset):
    config = load_preset(preset)
    assert config.train.steps / config.monitors.probe_every == 20


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=5", ["unknown key train.stepz", "Did you mean train.steps?", "Keys of train: steps, "]),
        ("trian.steps=5", ["unknown key trian.steps", "Did you mean train.steps?", "Keys of the configuration: scale"]),
        ("steps=5", ["unknown key steps", "Did you mean train.steps?"]),
        ("train.steps.x=5", ["unknown key train.steps.x"]),
        ("train=5", ["train is a section", "train.steps"]),
        ("train.batch_tokens=5", ["train.batch_tokens.cpu"]),
        ("train.steps", ["expected SECTION.KEY=VALUE"]),
        ("=5", ["expected SECTION.KEY=VALUE"]),
        ("train.steps=[", ["not valid YAML"]),
        ("train.steps=abc", ["train.steps: got 'abc' (str)", "integer"]),
        ("train.steps=2.5", ["train.steps: got 2.5 (float)", "integer"]),
        ("train.steps=true", ["train.steps: got True (bool)", "integer"]),
        ("train.steps=0", ["train.steps: got 0", "greater than or equal to 1"]),
        ("train.lr=.nan", ["train.lr", "finite"]),
        ("train.lr=2024-01-01", ["train.lr: got '2024-01-01' (str)", "number"]),
        ("train.betas=[.9]", ["train.betas"]),
        ("train.betas=[.9, 1.0]", ["train: betas must lie in [0, 1)"]),
        ("monitors.stop=1", ["monitors.stop: got 1 (int)", "boolean"]),
        ("data.tokenizer=bpx", ["data.tokenizer: got 'bpx'", "'bpe' or 'byte'"]),
        ("data.seq_len=300", ["train.batch_tokens.cpu 512 is not a multiple", "300"]),
        ("eval.tokens=100", ["eval.tokens 100 is less than one window"]),
        ("train.steps=20", ["warmup_steps 50", "lower train.warmup_steps"]),
        ("train.checkpoint_steps=[1001]", ["checkpoint_steps must lie in 1 .. 1000", "1001"]),
        ("scale=8M", ["scale is 3.5M in this preset", "-m or --graduate"]),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_was_expected(override, parts):
    with pytest.raises(ConfigError) as caught:
        load_preset("tiny", [override])
    for part in [*parts, override]:
        assert part in str(caught.value)


def test_an_unknown_scale_names_the_near_match():
    with pytest.raises(ConfigError, match=r"Did you mean tiny\? Allowed: 3.5M \(tiny\)"):
        load_preset("tniy")


def test_a_preset_file_is_checked_like_an_override():
    with pytest.raises(ConfigError, match=r"my\.yaml: unknown key train\.stepz"):
        validate_config({"scale": "x", "train": {"stepz": 1}}, "my.yaml")
    with pytest.raises(ConfigError, match=r"my\.yaml: scale is missing"):
        validate_config({}, "my.yaml")
    with pytest.raises(ConfigError, match=r"my\.yaml: expected a mapping"):
        parse_yaml("- 1", "my.yaml")


def test_the_hash_is_a_function_of_every_value():
    base = load_preset("tiny")
    hashes = {config_sha256(base), config_sha256(load_preset("tiny", ["train.steps=1001"]))}
    hashes |= {config_sha256(load_preset("tiny", ["eval.tokens=20001"])), config_sha256(load_preset("small"))}
    assert len(hashes) == 4
    # the same value written out is the same configuration
    assert config_sha256(load_preset("tiny", ["train.steps=1000"])) == config_sha256(base)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_preset("tiny").train.steps = 5


def test_the_decay_is_a_share_of_the_steps():
    assert TrainConfig(steps=1000, decay_fraction=0.2).decay_steps == 200
