import subprocess
import sys

import pytest
import torch

import models
from models import ConfigError, UnknownModelError, UnknownScaleError, get_model, list_models, model_config
from models.config import FusionConfig, Mamba2Config, ModelConfig, Rwkv6Config
from models.registry import sequence_pattern

NAMES = "RWKV6 MAMBA2 GPT2 HY WS RF CP GF GF-MH GF-RH GF-XM GF-XR HGF HGF-MH HGF-RH SEQ-4R10M SEQ-1R30M 8M"
CELLS = [(name, scale) for name in list_models() for scale in models.SCALES]
RUNG_CELLS = [(name, rung) for name in list_models() if name not in models.SCALES for rung in models.RUNGS]


def test_the_registry_has_the_promised_names():
    assert list_models() == NAMES.split()


@pytest.mark.parametrize(("name", "scale"), [*CELLS, *RUNG_CELLS])
def test_every_model_is_within_two_percent_of_its_nominal_size(name, scale):
    with torch.device("meta"):
        model = get_model(name, scale)
    total = sum(parameter.numel() for parameter in model.parameters())
    nominal = (models.SCALES | models.RUNGS)[model.config.scale]
    assert abs(total / nominal - 1) <= 0.02, f"{name} at {scale} has {total:,} parameters"


@pytest.mark.parametrize(("name", "scale"), CELLS)
def test_feed_forwards_are_four_wide_but_for_the_documented_exceptions(name, scale):
    config = model_config(name, scale)
    narrow = {"MAMBA2", "GPT2", "CP", "HGF", "HGF-MH", "HGF-RH"}
    exception = config.scale == "3.5M" and config.name in narrow
    assert (config.d_ff == 4 * config.d_model) is not exception


@pytest.mark.parametrize("scale", [*models.SCALES, *models.RUNGS])
def test_models_of_one_scale_share_their_width(scale):
    assert len({model_config(name, scale).d_model for name in list_models() if name != "8M"}) == 1


@pytest.mark.parametrize("scale", models.SCALES)
def test_a_ladder_climbs_to_its_scale_in_at_least_four_sizes(scale):
    sizes = models.SCALES | models.RUNGS
    climb = [sizes[rung] for rung in (*models.LADDERS[scale], scale)]
    assert len(climb) >= 5
    assert climb == sorted(set(climb))
    for name in ("GF-MH", "RWKV6", "MAMBA2", "GPT2"):
        configs = [model_config(name, rung) for rung in (*models.LADDERS[scale], scale)]
        widths = [config.d_model for config in configs]
        assert widths == sorted(widths)
        assert all(width % 32 == 0 for width in widths)
        assert all(config.rwkv.head_size == 32 for config in configs if config.rwkv and config.d_model < 192)


@pytest.mark.parametrize("name", ["GF-MH", "RF", "HGF", "RWKV6", "MAMBA2", "GPT2", "SEQ-4R10M", "SEQ-1R30M"])
@pytest.mark.parametrize("scale", models.SCALES)
def test_a_ladder_climbs_at_a_small_vocabulary_too(name, scale):
    with torch.device("meta"):
        rungs = [get_model(name, rung, vocab_size=512) for rung in (*models.LADDERS[scale], scale)]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in rungs]
    assert sizes == sorted(set(sizes))


def test_rungs_are_no_scales():
    assert not models.RUNGS.keys() & models.SCALES.keys()
    assert set().union(*models.LADDERS.values()) <= models.RUNGS.keys() | models.SCALES.keys()


def test_8m_is_gf_mh_at_8m_whatever_the_scale():
    assert model_config("8M") == model_config("GF-MH", "8M") == model_config("8M", "30M")


def test_gf_mh_at_3_5m_has_the_pilot_shape():
    config = model_config("GF-MH")
    assert (config.d_model, config.num_layers, config.d_ff) == (128, 4, 512)
    assert config.rwkv == Rwkv6Config(head_size=32, mix_rank=16, decay_rank=32)
    assert config.mamba == Mamba2Config(d_state=64, head_dim=64)
    assert config.fusion == FusionConfig("position_gate", 0.3)


def test_the_vocabulary_changes_only_the_embedding():
    small, nominal = model_config("GF-MH", vocab_size=1000).to_dict(), model_config("GF-MH").to_dict()
    assert {key for key in small if small[key] != nominal[key]} == {"vocab_size"}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gf-mh", "GF-MH"), ("GFMH", "GF-MH"), ("rwkv", "RWKV6"), ("GPT-2", "GPT2")]
)
def test_an_unknown_name_suggests_the_nearest(wrong, meant):
    with pytest.raises(UnknownModelError, match=rf"'{wrong}'\. Did you mean {meant}\? Known: RWKV6, "):
        get_model(wrong)


def test_an_unknown_scale_suggests_the_nearest():
    with pytest.raises(UnknownScaleError, match=r"'3\.5m' \(model GF\)\. Did you mean 3\.5M\? Known: 3\.5M, 8M"):
        get_model("GF", "3.5m")


@pytest.mark.parametrize("name", list_models())
def test_configurations_survive_a_dictionary(name):
    config = model_config(name, "8M")
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_unknown_keys_are_refused_with_a_suggestion():
    values = model_config("GF").to_dict()
    with pytest.raises(ConfigError, match=r"no key 'd_modle'.*Did you mean d_model\?"):
        ModelConfig.from_dict({**values, "d_modle": 1})
    with pytest.raises(ConfigError, match=r"Rwkv6Config has no key 'heads'"):
        ModelConfig.from_dict({**values, "rwkv": {**values["rwkv"], "heads": 4}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 100}, "d_model 100 is not a multiple of rwkv.head_size 32"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (("mamba", "rwkv"),)}, r"layers\[0\] is \('mamba', 'rwkv'\)"),
        ({"rwkv": None}, "rwkv must be configured"),
        ({"fusion": None}, "fusion must be configured"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    fields = {key: getattr(model_config("GF"), key) for key in model_config("GF").to_dict()}
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**fields, **change})


@pytest.mark.parametrize(("kind", "gate"), [("position_gate", None), ("position_gate", 1.0), ("learned_gains", 0.5)])
def test_a_gate_share_is_demanded_of_gates_and_of_nothing_else(kind, gate):
    with pytest.raises(ConfigError, match="gate_init"):
        FusionConfig(kind, gate)


@pytest.mark.parametrize(
    ("ratio", "num_layers", "pattern"),
    [((4, 10), 6, "RMMRMM"), ((1, 30), 6, "RMMMMM"), ((4, 10), 14, "RMMMRMMRMMMRMM"), ((1, 30), 31, "R" + "M" * 30)],
)
def test_sequence_patterns_keep_the_ratio_and_spread_evenly(ratio, num_layers, pattern):
    layers = sequence_pattern(*ratio, num_layers)
    assert "".join(branch[0].upper() for (branch,) in layers) == pattern


def test_naming_models_imports_no_torch():
    code = "import sys, models; models.list_models(); models.model_config('GF'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["GF-MH", "GPT2", "HY"])
def test_small_vectors_are_marked_against_weight_decay(name):
    model = get_model(name, vocab_size=64)
    marked = {n for n, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    vectors = {n for n, p in model.named_parameters() if p.dim() < 2}
    assert vectors <= marked
    adapters = ("maa", "maa_w1", "maa_w2", "decay_w1", "decay_w2", "bonus")
    matrices = {n for n, p in model.named_parameters() if p.dim() >= 2}
    assert matrices & marked == {n for n in matrices if n.rpartition(".")[2] in adapters}
