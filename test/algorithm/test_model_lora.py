"""Adapters in PEFT's format against peft itself, and what is refused."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError
from algorithm.model.lora import build_adapter, merge, read_adapter, write_adapter
from algorithm.model.manifest import TowerConfig
from algorithm.model.tower import Tower, linear_shapes, tower_from_state

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


def saved(tmp_path):
    """A folder with a plain adapter, its configuration and its tensors."""
    model, _ = adapted_tower(PLAIN)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    return config, load_file(tmp_path / "adapter_model.safetensors")


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
