"""Adapters in PEFT's format against peft itself, and what is refused."""

import json

import open_clip
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError
from algorithm.model.expressions import check_expression
from algorithm.model.lora import build_adapter, merge, read_adapter, write_adapter
from algorithm.model.networks import TowerConfig
from algorithm.model.tower import Tower, linear_shapes, tower_from_state
from training.network.open_clip_weights import tower_config_from_open_clip, tower_state_from_open_clip

CONFIG = TowerConfig(56, 14, 32, 4, 4, 64, 16)
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["c_fc", "c_proj"]}
CONFIGURATIONS = {
    "published": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["c_fc", "c_proj", "out_proj"]},
    "attention": {"r": 3, "lora_alpha": 5, "target_modules": ATTENTION},
    "regex": {"r": 2, "lora_alpha": 4, "target_modules": r".*resblocks\.[13]\.(attn\.q_proj|mlp\.c_fc)"},
    "all_linear": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["c_fc"]},
    "last_blocks": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["c_proj", "v_proj"],
        "layers_to_transform": [2, 3],
        "layers_pattern": "resblocks",
    },
    "one_block": {"r": 4, "lora_alpha": 8, "target_modules": ["c_proj"], "layers_to_transform": 1},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["c_fc", "c_proj"],
        "rank_pattern": {r"resblocks\.0\.mlp\.c_fc": 2, "c_proj": 6},
        "alpha_pattern": {r"resblocks\.[01]\.mlp\.c_proj": 3},
    },
    "excluded": {"r": 4, "lora_alpha": 8, "target_modules": ["c_fc"], "exclude_modules": ["resblocks.1.mlp.c_fc"]},
}


def adapted_tower(settings):
    """A random tower with a peft adapter whose factors are all random, B too, and the tower's own state."""
    torch.manual_seed(0)
    tower = Tower(CONFIG).eval()
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    model = peft.get_peft_model(tower, peft.LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model, state


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.inference_mode()
def test_merged_equals_peft(name, tmp_path):
    """Merging a folder that peft saved gives peft's unmerged outputs, and peft's own merged weights."""
    model, state = adapted_tower(CONFIGURATIONS[name])
    images = torch.randn(2, 3, 56, 56)
    unmerged = model(images, taps=(1, 4))
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, linear_shapes(CONFIG))
    merged_state = {
        tensor_name: merge(tensor, adapter.factors.get(tensor_name.removesuffix(".weight")))
        for tensor_name, tensor in state.items()
    }
    output = tower_from_state(CONFIG, merged_state)(images, taps=(1, 4))
    assert torch.allclose(output.embedding, unmerged.embedding, atol=1e-5, rtol=0)
    for ours, theirs in zip(output.taps, unmerged.taps, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(tower_from_state(CONFIG, state)(images).embedding, output.embedding, atol=1e-2)
    for tensor_name, tensor in model.merge_and_unload().state_dict().items():
        assert torch.allclose(merged_state[tensor_name], tensor, atol=1e-6), tensor_name


@torch.inference_mode()
def test_written_adapter_loads_into_peft(tmp_path):
    """What write_adapter writes is an adapter to peft too, and reads back unchanged."""
    model, state = adapted_tower(CONFIGURATIONS["patterns"])
    images = torch.randn(1, 3, 56, 56)
    expected = model(images).embedding
    model.save_pretrained(tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft", linear_shapes(CONFIG))
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", adapter)
    again = read_adapter(tmp_path / "ours", linear_shapes(CONFIG))
    assert again.config == adapter.config
    for name, factors in adapter.factors.items():
        assert torch.equal(again.factors[name].a, factors.a)
        assert torch.equal(again.factors[name].b, factors.b)
    reloaded = peft.PeftModel.from_pretrained(tower_from_state(CONFIG, state), tmp_path / "ours").eval()
    assert torch.allclose(reloaded(images).embedding, expected, atol=1e-6)


@torch.inference_mode()
def test_every_factor_matters():
    """Changing any single factor of an adapter on all layers changes the tower's output."""
    model, state = adapted_tower({"r": 2, "lora_alpha": 4, "target_modules": [*ATTENTION, "c_fc", "c_proj"]})
    content = {"peft_type": "LORA", **PLAIN, "r": 2, "target_modules": [*ATTENTION, "c_fc", "c_proj"]}
    tensors = peft.get_peft_model_state_dict(model)
    # In double precision even the little that queries and keys of a random tower matter stands clear of rounding.
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)

    def embedding(tensors):
        factors = build_adapter(content, tensors, linear_shapes(CONFIG)).factors
        merged = {
            name: merge(tensor, factors.get(name.removesuffix(".weight"))).double() for name, tensor in state.items()
        }
        return tower_from_state(CONFIG, merged)(images).embedding

    expected = embedding(tensors)
    assert len(tensors) == 4 * 6 * 2
    for name in tensors:
        changed = tensors[name].clone()
        changed[0, 0] += 0.5
        assert (embedding({**tensors, name: changed}) - expected).abs().max() > 1e-7, name


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 56, "layers": 4, "width": 32, "head_width": 8, "patch_size": 14, "mlp_ratio": 2},
}


def adapted_attention(settings, tmp_path):
    """open_clip's tower with a peft adapter on its nn.MultiheadAttention, saved to `tmp_path`; our tower's state."""
    torch.manual_seed(0)
    visual = open_clip.model._build_vision_tower(OPEN_CLIP["embed_dim"], OPEN_CLIP["vision_cfg"], False).eval()
    config = tower_config_from_open_clip(OPEN_CLIP)
    state = {name: tensor.clone() for name, tensor in tower_state_from_open_clip(visual.state_dict(), config).items()}
    model = peft.get_peft_model(visual, peft.LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    return model, config, state


def merged_tower(config, state, adapter):
    """Our tower with an adapter merged."""
    return tower_from_state(
        config,
        {name: merge(tensor, adapter.factors.get(name.removesuffix(".weight"))) for name, tensor in state.items()},
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["attn"]},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["attn", "c_fc"]},
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["attn", "c_fc"],
            "rank_pattern": {r"resblocks\.1\.attn": 3, "c_fc": 5},
            "alpha_pattern": {r"resblocks\.[01]\.attn": 7},
            "exclude_modules": ["resblocks.2.attn"],
        },
    ],
)
@torch.inference_mode()
def test_attention_adapter_equals_peft(settings, tmp_path):
    """peft's adapter on nn.MultiheadAttention gives peft's forward, the doubled output included; and written as plain
    LoRA it is the same adapter again."""
    model, config, state = adapted_attention(settings, tmp_path)
    images = torch.randn(2, 3, 56, 56)
    expected = model(images)
    adapter = read_adapter(tmp_path, linear_shapes(config))
    assert (merged_tower(config, state, adapter)(images).embedding - expected).abs().max() < 1e-5
    assert (tower_from_state(config, state)(images).embedding - expected).abs().max() > 0.01
    (tmp_path / "plain").mkdir()
    write_adapter(tmp_path / "plain", adapter)
    again = read_adapter(tmp_path / "plain", linear_shapes(config))
    assert (merged_tower(config, state, again)(images).embedding - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("version", "doubled"), [(None, 2), ("0.14.0", 2), ("0.21.2", 2), ("0.21.3.dev0", 1), ("0.22.0", 1), ("1.0", 1)]
)
def test_the_output_is_doubled_as_the_version_had_it(version, doubled, tmp_path):
    """Only the update of out_proj, and only where peft added it twice."""
    _, config, _ = adapted_attention({"r": 4, "lora_alpha": 8, "target_modules": ["attn"]}, tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**content, "peft_version": version}))
    factors = read_adapter(tmp_path, linear_shapes(config)).factors
    scalings = {name.rpartition(".")[2]: one.scaling for name, one in factors.items()}
    assert scalings == {"q_proj": 2.0, "k_proj": 2.0, "v_proj": 2.0, "out_proj": 2.0 * doubled}


def test_attention_adapter_that_is_incomplete(tmp_path):
    """A tensor that is missing, of other rows, or of an attention that is no target is refused by name."""
    _, config, _ = adapted_attention({"r": 4, "lora_alpha": 8, "target_modules": ["attn"]}, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.transformer.resblocks.2.attn.lora_B.weight"
    both = {key: tensor for key, tensor in tensors.items() if "resblocks.2." not in key}
    for changed, message in (
        (
            {key: value for key, value in tensors.items() if key != name},
            r"resblocks\.2\.attn\.lora_B\.weight' is missing",
        ),
        ({**tensors, name: torch.zeros(97, 4)}, r"resblocks\.2\.attn\.lora_B\.weight' is \(97, 4\)"),
        ({**tensors, name: torch.zeros(99, 4)}, r"resblocks\.2\.attn\.q_proj\.lora_B\.weight' is \(33, 4\)"),
        (both, r"resblocks\.2\.attn' is a target, but not adapted"),
    ):
        save_file(changed, path)
        with pytest.raises(AcouslicError, match=message):
            read_adapter(tmp_path, linear_shapes(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_modules", "(", "target_modules: '\\(' is not a regular expression"),
        ("target_modules", "(a+)+$", "target_modules: .* could take for ever"),
        ("target_modules", "(a|a.)*b", "target_modules: .* could take for ever"),
        ("target_modules", ".*.*.*.*.*.*.*x", "target_modules: .* could take for ever"),
        ("target_modules", "x" * 3000, "target_modules: .* has 3,000 characters"),
        ("exclude_modules", "[", "exclude_modules: .* is not a regular expression"),
        ("exclude_modules", 3, "exclude_modules must be text or an array or null, not 3"),
        ("target_modules", ["c_fc", 3], r"target_modules\[1\] must be text, not 3"),
        ("rank_pattern", {"c_fc": 1, "(": 2}, "rank_pattern: .* is not a regular expression"),
        ("rank_pattern", {"c_fc": -1}, r"rank_pattern\['c_fc'\] must be an integer >= 1, not -1"),
        ("rank_pattern", ["c_fc"], "rank_pattern must be an object or null, not an array of 1"),
        ("alpha_pattern", {"c_fc": "4"}, r"alpha_pattern\['c_fc'\] must be a number, not '4'"),
        ("alpha_pattern", {"(?P<a": 1}, "alpha_pattern: .* is not a regular expression"),
        ("layers_to_transform", ["1"], r"layers_to_transform\[0\] must be an integer, not '1'"),
        ("layers_pattern", ["(("], "layers_pattern: .* is not a regular expression"),
        ("r", 10**30, "r must be an integer <= 65536"),
        ("use_rslora", "yes", "use_rslora must be true or false or null, not 'yes'"),
        ("peft_type", ["LORA"], "peft_type="),
    ],
)
def test_hostile_configuration_is_one_sentence(field, value, message, tmp_path):
    """Expressions that are none or would never end, wrong types and absurd numbers are refused by field."""
    config, _ = saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(AcouslicError, match=message) as caught:
        read_adapter(tmp_path, linear_shapes(CONFIG))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(c_fc|c_proj)",
        r"^(?!.*text).*(?:mlp|attn).*(?:c_fc|q_proj).*$",
        r"(?:visual\.)?transformer\.resblocks\.(?:1[0-9]|2[0-3])\.mlp\.(?:c_fc|c_proj)",
        r".*resblocks\.[\d]{1,2}\.(attn|mlp)\.(?P<layer>[a-z_]+)",
    ],
)
def test_usual_expressions_are_accepted(expression):
    """What people write as target_modules passes the check of expressions."""
    check_expression(expression, "target_modules")


def saved(tmp_path):
    """A folder with a plain adapter, its configuration and its tensors."""
    model, _ = adapted_tower(PLAIN)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    return config, load_file(tmp_path / "adapter_model.safetensors")


def test_how_an_adapter_began_does_not_matter(tmp_path):
    """What peft writes of a start from the data's own directions (EVA) changes nothing of what was trained."""
    config, tensors = saved(tmp_path)
    settings = peft.LoraConfig(
        r=4, target_modules=["c_fc"], init_lora_weights="eva", eva_config=peft.EvaConfig()
    ).to_dict()
    assert settings["eva_config"]
    started = {"init_lora_weights": "eva", "eva_config": settings["eva_config"]}
    began, plain = (build_adapter({**config, **more}, tensors, linear_shapes(CONFIG)) for more in (started, {}))
    assert began.factors.keys() == plain.factors.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["ln_post"]),
        ("peft_type", "IA3"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 2], [1, 4]]),
        ("target_parameters", ["proj"]),
        ("alora_invocation_tokens", [1, 2]),
        ("a_field_of_a_later_version", {"scale": 2}),
        ("r", 0),
        ("lora_alpha", None),
        ("rank_pattern", {"c_fc": "4"}),
        ("target_modules", ["no_such_layer"]),
    ],
)
def test_configuration_refused(field, value, tmp_path):
    """A configuration that is not plain LoRA on the tower's layers is refused, naming file and field."""
    config, _ = saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(AcouslicError, match=rf"adapter_config\.json.*{field}"):
        read_adapter(tmp_path, linear_shapes(CONFIG))


def test_tensors_refused(tmp_path):
    """A missing, an extra and a misshapen tensor are refused, naming file and tensor."""
    _, tensors = saved(tmp_path)
    name = "base_model.model.transformer.resblocks.2.mlp.c_fc.lora_A.weight"
    path = tmp_path / "adapter_model.safetensors"
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != name}, "is missing"),
        ({**tensors, name.replace("c_fc", "c_gate"): torch.zeros(1)}, "unknown tensor"),
        ({**tensors, name: torch.zeros(5, 32)}, r"\(5, 32\).*expected \(4, 32\)"),
        ({**tensors, name: torch.zeros(4, 32, dtype=torch.int32)}, "int32.*expected"),
    ):
        save_file(changed, path)
        with pytest.raises(AcouslicError, match=rf"adapter_model\.safetensors.*lora_A.*{message}|{message}.*lora_A"):
            read_adapter(tmp_path, linear_shapes(CONFIG))


def test_pickle_is_not_read(tmp_path):
    """A pickled checkpoint under the right name is refused without being unpickled."""
    saved(tmp_path)
    torch.save({"anything": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AcouslicError, match=r"adapter_model\.safetensors is not a readable safetensors file"):
        read_adapter(tmp_path, linear_shapes(CONFIG))
