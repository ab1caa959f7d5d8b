import pytest

from iec import IECConfig
from iec.efficient import CacheQuantConfig, DeepCacheConfig, QuantizationConfig
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.experiments.language import (
    parse_cache,
    parse_cachequant,
    parse_correction,
    parse_one_technique,
    parse_quantization,
    parse_technique,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("none", None),
        ("deepcache:5", DeepCacheConfig(5)),
        ("deepcache:5,forecast", DeepCacheConfig(5, forecast=True)),
        ("deepcache:5,forecast=true,branch=0", DeepCacheConfig(5, 0, forecast=True)),
        ("deepcache:5, forecast ,schedule=dps", DeepCacheConfig(5, schedule="dps", forecast=True)),
        ("deepcache:5,forecast=false", DeepCacheConfig(5)),
        ("deepcache:10,branch=2,schedule=centred,centre=12,power=1.2", DeepCacheConfig(10, 2, "centred", 12, 1.2)),
    ],
)
def test_caches(text, expected):
    assert parse_cache(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("none", None),
        ("paper", IECConfig.paper()),
        ("released", IECConfig.released()),
        ("stable_diffusion", IECConfig(0.5, 1, "first")),
        ("relaxation=0.3,steps=edges:1/10", IECConfig(relaxation=0.3, steps="edges:1/10")),
        ("relaxation=1+0.5,steps=0+5+9", IECConfig(relaxation=(1.0, 0.5), num_iterations=2, steps=[0, 5, 9])),
        ("iterations=3,tolerance=1e-4,tolerance_mode=absolute", IECConfig(0.5, 3, "all", False, 1e-4, "absolute")),
        ("cached_steps=true,cache=reuse,steps=4", IECConfig(cached_steps=True, cache="reuse", steps=[4])),
    ],
)
def test_corrections(text, expected):
    assert parse_correction(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float", None),
        ("deepcache:5,branch=0", DeepCacheConfig(5, 0)),
        ("w8a8", QuantizationConfig(8, 8)),
        ("W4A8,softmax=6,steps_per_group=5", QuantizationConfig(4, 8, softmax=6, steps_per_group=5)),
        ("w4a8,bias_correction=true", QuantizationConfig(4, 8, bias_correction=True)),
        ("w4a8,reconstruction=layer", QuantizationConfig(4, 8, reconstruction=ReconstructionConfig("layer"))),
        ("cachequant:5,w4a8,branch=1,schedule=dps", CacheQuantConfig(5, 1, "dps", 4, 8)),
        ("cachequant:3,w8a8,bias_correction=True", CacheQuantConfig(3, bias_correction=True)),
        ("cachequant:3,float", CacheQuantConfig(3, weights=None)),
        ("cachequant:3,w4a8,forecast", CacheQuantConfig(3, weights=4, forecast=True)),
        (
            "cachequant:5,w4a8,reconstruction=block",
            CacheQuantConfig(5, weights=4, reconstruction=ReconstructionConfig("block")),
        ),
    ],
)
def test_techniques(text, expected):
    assert parse_technique(text) == expected


def test_three_options_name_one_technique():
    assert parse_one_technique(None, None, None) is None
    assert parse_one_technique("deepcache:5", None, None) == DeepCacheConfig(5)
    assert parse_one_technique(None, "w4a8", None) == QuantizationConfig(4, 8)
    assert parse_one_technique(None, None, "5,w8a8") == CacheQuantConfig(5)
    with pytest.raises(ValueError, match="--cachequant 5,w4a8"):
        parse_one_technique("deepcache:5", "w4a8", None)
    with pytest.raises(ValueError, match="leave out --cache and --quantize"):
        parse_one_technique(None, "w4a8", "5,w8a8")


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        (parse_quantization, "8", "'8' are no bits: write wXaY"),
        (parse_quantization, "w9a8", r"weights must lie in 2..8"),
        (parse_quantization, "w1a8", r"weights must lie in 2..8"),
        (parse_quantization, "w4a8,reconstruction=global", "Unknown reconstruction 'global'"),
        (parse_quantization, "w4a8,depth=1", "Unknown setting 'depth'"),
        (parse_quantization, "w4a8,bias_correction=yes", "bias_correction must be true or false, but is 'yes'"),
        (parse_cachequant, "5", "lacks the bits"),
        (parse_cachequant, "five,w8a8", "the cache interval must be an integer"),
        (parse_cachequant, "5,w8a8,schedule=often", "Unknown schedule 'often'"),
        (parse_cache, "teacache:5", "Unknown cache 'teacache'"),
        (parse_cache, "deepcache", "the cache interval must be an integer, but is ''"),
        (parse_cache, "deepcache:five", "the cache interval must be an integer"),
        (parse_cache, "deepcache:0", "interval must be at least 1"),
        (parse_cache, "deepcache:5,branch=a", "branch must be an integer"),
        (parse_cache, "deepcache:5,branch", "'branch' is no setting: write name=value"),
        (parse_cache, "deepcache:5,forecast=2", "forecast must be true or false, but is '2'"),
        (parse_cache, "deepcache:5,depth=1", "Unknown setting 'depth'"),
        (parse_correction, "relaxation=2", r"relaxation must lie in \[0, 2\)"),
        (parse_correction, "relaxation=nan", r"relaxation must lie in \[0, 2\)"),
        (parse_correction, "relaxation=half", "relaxation must be a number"),
        (parse_correction, "iterations=-1", "num_iterations must not be negative"),
        (parse_correction, "tolerance=-1", "tolerance must be a finite number of at least 0"),
        (parse_correction, "steps=sometimes", "Unknown step selector 'sometimes'"),
        (parse_correction, "steps=edges:2", "A must be a fraction above 0"),
        (parse_correction, "cache=keep", "cache must be one of refresh, bypass, reuse"),
        (parse_correction, "strength=1", "Unknown correction setting 'strength'"),
        (parse_correction, "always", "Unknown correction 'always': use none, calibrated, adams"),
    ],
)
def test_bad_options_are_one_sentence(parse, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(text)
