"""The network that is trained: which tensors learn, what the named settings do, and that peft's file is what runs."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acouslic.errors import AcouslicError
from algorithm.model.lora import merge, read_adapter
from algorithm.model.networks import PreprocessingConfig, TowerConfig
from algorithm.model.tower import Attention, Tower, linear_shapes, tower_from_state
from training.learn.losses import mask_loss, optimality_loss, presence_loss, ranking_loss, shared_mean
from training.network.fast_layers import frozen_in, merged, speed_up
from training.network.model import FrameNetwork, all_rows, build_network, count_trained, decoder_taps
from training.network.tower_source import LoadedTower, fan_patches, hash_state
from training.recipe.settings import FAITHFUL_CLS, FAITHFUL_SEG, AdapterSettings, HeadSettings, LossSettings

CONFIG = TowerConfig(image_size=28, patch_size=14, width=16, layers=4, heads=2, mlp_width=32, output_dim=8)
ADAPTER = AdapterSettings(rank=2, alpha=4, dropout=0.0, last_blocks=2)
HEADS = HeadSettings(filters=1)


def draw_tower(config: TowerConfig = CONFIG) -> LoadedTower:
    """A tower of random weights."""
    torch.manual_seed(0)
    state = {name: tensor.detach() for name, tensor in Tower(config).state_dict().items()}
    return LoadedTower(config, PreprocessingConfig(), state, hash_state(state))


def draw_network(adapter: AdapterSettings = ADAPTER, heads: HeadSettings = HEADS, **more: Any) -> FrameNetwork:
    """A network on it, its adapters moved away from their start, where half of them are zero."""
    torch.manual_seed(1)
    options = {"train_all": False, "checkpoint_blocks": False} | more
    network = build_network(draw_tower(), adapter, heads, **options)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return network.eval()


def draw_images(count: int = 3) -> Tensor:
    """Normalised images."""
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(2))


def total(network: FrameNetwork, images: Tensor, rows: Tensor | None = None) -> Tensor:
    """One number of every output; masks of all images, or of `rows`."""
    output = network(images, all_rows(images) if rows is None else rows)
    parts = [part for part in (output.presence, output.optimality, output.mask) if part is not None]
    return torch.stack([part.float().square().mean() for part in parts]).sum()


def test_every_lora_tensor_learns_and_matters() -> None:
    """Each factor on q, k, v, out, c_fc and c_proj of the last blocks gets a gradient and changes the output."""
    network, images = draw_network(), draw_images()
    total(network, images).backward()
    factors = {name: p for name, p in network.named_parameters() if "lora_" in name}
    assert len(factors) == 2 * 2 * 6
    before = total(network, images).detach()
    for name, parameter in factors.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        with torch.no_grad():
            kept = parameter.clone()
            # Not the same for all channels: a LayerNorm would take that away again.
            parameter.add_(torch.randn_like(parameter))
            assert not torch.equal(total(network, images), before), name
            parameter.copy_(kept)


def test_only_adapters_and_heads_learn() -> None:
    """The tower's own weights take no gradient, and nothing before the first adapted block holds a graph."""
    network = draw_network()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("heads.") for name in learning)
    blocks = network.tower.get_base_model().transformer.resblocks
    seen: dict[int, bool] = {}
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _i, output, index=index: seen.update({index: output.requires_grad}))
    network(draw_images())
    assert seen == {0: False, 1: False, 2: True, 3: True}


def test_the_dead_projection_learns_nothing() -> None:
    """The published recipe names out_proj and never adapts it: naming it or not is the same network."""
    dead = replace(FAITHFUL_CLS.adapter, rank=2, dropout=0.0)
    named = draw_network(dead, FAITHFUL_CLS.heads)
    unnamed = draw_network(replace(dead, targets=("c_fc", "c_proj")), FAITHFUL_CLS.heads)
    longer = draw_network(replace(dead, targets=("c_fc", "c_proj", "attn.out_proj")), FAITHFUL_CLS.heads)
    assert count_trained(longer) == count_trained(named)
    live = draw_network(replace(dead, dead_out_proj=False), FAITHFUL_CLS.heads)
    assert count_trained(named) == count_trained(unnamed) < count_trained(live)
    assert torch.equal(named(draw_images()).presence, unnamed(draw_images()).presence)


def test_the_published_segmentation_trains_the_decoder_alone() -> None:
    """FAITHFUL_SEG: no adapter, no linear head, and no gradient reaches the tower."""
    heads = replace(FAITHFUL_SEG.heads, filters=1, decoder_grid=None, taps="even")
    network = draw_network(FAITHFUL_SEG.adapter, heads)
    assert network.judges_by_mask
    assert all(name.startswith("heads.decoder.") for name, p in network.named_parameters() if p.requires_grad)
    attached = draw_network(heads=replace(HEADS, presence=False, optimality=False, detach_decoder=True))
    output = attached(draw_images(), torch.arange(3))
    output.mask.sum().backward()
    assert all(p.grad is None for name, p in attached.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("layers", "spacing", "expected"),
    [
        (24, "even", (6, 12, 18, 24)),
        (24, "published", (6, 8, 12, 24)),
        (12, "even", (3, 6, 9, 12)),
        (4, "even", (1, 2, 3, 4)),
    ],
)
def test_decoder_taps(layers: int, spacing: str, expected: tuple[int, ...]) -> None:
    """Evenly spaced, or the published code's n // i."""
    assert decoder_taps(layers, spacing) == expected


def test_too_few_blocks_for_the_decoder() -> None:
    """Four different blocks are needed, and the message says how many there are."""
    with pytest.raises(AcouslicError, match="the tower has 3"):
        decoder_taps(3, "even")
    with pytest.raises(AcouslicError, match="four different blocks"):
        decoder_taps(4, "published")


def test_recomputed_blocks_give_the_same_gradients() -> None:
    """Gradient checkpointing changes memory, not results."""
    gradients = []
    for checkpoint_blocks in (False, True):
        network = draw_network(checkpoint_blocks=checkpoint_blocks)
        total(network, draw_images()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_pefts_file_is_the_same_adapter(tmp_path: Path) -> None:
    """What peft saves, read without peft and merged, gives the embedding that training had."""
    network = draw_network()
    network.tower.save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapter = read_adapter(tmp_path, linear_shapes(CONFIG))
    merged = dict(draw_tower().state)
    for name, factors in adapter.factors.items():
        merged[f"{name}.weight"] = merge(merged[f"{name}.weight"], factors)
    tower = tower_from_state(CONFIG, merged)
    with torch.inference_mode():
        expected = network.tower(draw_images()).embedding
        torch.testing.assert_close(tower(draw_images()).embedding, expected, rtol=1e-4, atol=1e-5)


def test_networks_share_no_weights() -> None:
    """Training one network cannot change another that was built from the same tower."""
    loaded = draw_tower()
    options = {"train_all": True, "checkpoint_blocks": False}
    first, second = (build_network(loaded, AdapterSettings(rank=0), HEADS, **options) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert hash_state(dict(second.tower.state_dict())) == loaded.sha256
    assert hash_state(loaded.state) == loaded.sha256


def test_no_judge_is_an_error() -> None:
    """A member without presence head and decoder could say nothing."""
    with pytest.raises(AcouslicError, match="nothing would judge"):
        draw_network(heads=HeadSettings(presence=False, decoder=False))


def test_unknown_target_is_an_error() -> None:
    """A layer that the tower does not have cannot be adapted, and the message names the setting."""
    with pytest.raises(AcouslicError, match=r"adapter\.targets"):
        draw_network(replace(ADAPTER, targets=("in_proj",)))
    with pytest.raises(
        AcouslicError, match=r"adapter\.targets: the tower has no layer 'c_prj', but c_fc, c_proj, k_proj"
    ):
        draw_network(replace(ADAPTER, targets=("c_fc", "c_prj")))


def test_fan_patches_hold_the_fan() -> None:
    """Of 16 x 16 patches the padding above and below is dropped, and the corners; the middle stays."""
    config = replace(CONFIG, image_size=224, patch_size=14)
    kept = np.zeros(256, bool)
    kept[list(fan_patches(config, 562, 744))] = True
    grid = kept.reshape(16, 16)
    assert not grid[0].any()
    assert not grid[-1].any()
    assert not grid[2, 0]
    assert grid[8, 8]
    assert 0.5 < kept.mean() < 0.75
    assert fan_patches(config, 300, 300) == tuple(range(256))


def test_a_dropped_patch_is_not_looked_at() -> None:
    """With kept patches, whatever is in the others changes nothing, in training as in inference."""
    config = replace(CONFIG, kept_patches=(0, 3))
    network = build_network(
        draw_tower(config), ADAPTER, HeadSettings(decoder=False), train_all=False, checkpoint_blocks=False
    )
    images = draw_images()
    changed = images.clone()
    changed[:, :, :14, 14:] = 9.0
    assert torch.equal(network.eval()(images).presence, network(changed).presence)


def test_presence_loss_by_hand() -> None:
    """Cross-entropy ln 2 at logit 0; the positive's weight; focal with gamma 2 is a quarter of that at 0.5."""
    logit, positive = torch.zeros(2), torch.tensor([True, False])
    assert presence_loss(logit, positive, LossSettings(positive_weight=3.0)).tolist() == pytest.approx(
        [2.0794, 0.6931], abs=1e-4
    )
    focal = presence_loss(logit, positive, LossSettings(presence="focal"))
    assert focal.tolist() == pytest.approx([0.1733, 0.1733], abs=1e-4)
    shares = presence_loss(torch.full((2,), 50.0), torch.tensor([0.5, 0.9]), LossSettings())
    assert shares.tolist() == pytest.approx([25.0, 5.0], abs=1e-4)
    assert optimality_loss(logit, positive).tolist() == pytest.approx([0.6931, 0.6931], abs=1e-4)


def test_ranking_loss_by_hand() -> None:
    """ln(1 + e^-d) of each pair of one case, d by how much the annotated frame stands above the other; other cases
    and batches without a pair count for nothing."""
    logit = torch.tensor([2.0, 0.0, 1.0, 5.0, -3.0])
    positive, case = torch.tensor([True, False, False, False, True]), torch.tensor([1, 1, 1, 2, 3])
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert ranking_loss(logit, positive, case).item() == pytest.approx(expected, abs=1e-6)
    assert ranking_loss(logit[3:], positive[3:], case[3:]).item() == 0


def test_mask_loss_by_hand() -> None:
    """A perfect mask costs nothing, an empty answer to 4 pixels 1 - 1 / 5 by Dice; pooled, frames share one value."""
    target = torch.zeros(2, 4, 4)
    target[0, :2, :2] = 1
    perfect = (target - 0.5) * 200
    assert mask_loss(perfect, target, LossSettings()).tolist() == pytest.approx([0, 0], abs=1e-6)
    empty = torch.full((2, 4, 4), -100.0)
    assert mask_loss(empty, target, LossSettings(mask="dice")).tolist() == pytest.approx([0.8, 0.0], abs=1e-6)
    assert mask_loss(empty, target, LossSettings(mask="dice_pooled")).tolist() == pytest.approx([0.8, 0.8], abs=1e-6)


def test_processes_share_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 processes one has 2 counted frames with a sum of 3, the other 4: this one's part is 3 / (6 / 2).

    Averaged over both, as gradients are, that is the mean over all 6.
    """
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(4))
    loss, included = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])
    assert float(shared_mean(loss, included)) == pytest.approx(1.0)


def test_heads_start_from_those_of_another_run(tmp_path: Path) -> None:
    """A head that the file has is taken, one that it lacks starts anew, and a wrong shape or no head is an error."""
    other = draw_network(heads=replace(HEADS, optimality=False)).heads.state_dict()
    with torch.no_grad():
        other["presence.bias"].fill_(3.0)
    path = tmp_path / "heads.safetensors"
    save_file(other, path)
    network = draw_network(heads=replace(HEADS, weights=str(path)))
    assert network.heads.presence.bias.item() == 3.0
    assert network.heads.optimality is not None
    save_file({"presence.weight": torch.zeros(1, 4), "presence.bias": torch.zeros(1)}, path)
    with pytest.raises(AcouslicError, match=r"presence.*shape"):
        draw_network(heads=replace(HEADS, weights=str(path)))
    save_file({"another.weight": torch.zeros(1)}, path)
    with pytest.raises(AcouslicError, match="none of the heads"):
        draw_network(heads=replace(HEADS, weights=str(path)))


@pytest.mark.parametrize(("share", "start"), [(0.1, 0.1), (None, 0.5), (0.0, 0.5), (1.0, 0.5)])
def test_a_fresh_decoder_starts_at_the_share_of_the_masks(share: float | None, start: float) -> None:
    """Its last layer's bias gives every pixel that probability; without a share that can be given, one half."""
    network = draw_network(heads=replace(HEADS, filters=8), mask_share=share)
    assert network.heads.decoder is not None
    last = network.heads.decoder.get_submodule("decoder0_header.2.block")
    nn.init.zeros_(last.get_parameter("weight"))
    images = draw_images()
    mask = network(images, all_rows(images)).mask
    if share is None:  # torch's own start is near it
        assert (mask.sigmoid() - start).abs().max() < 0.1
    else:
        torch.testing.assert_close(mask.sigmoid(), torch.full_like(mask, start))


def test_a_decoder_of_another_run_keeps_its_start(tmp_path: Path) -> None:
    """What it learned is not overwritten by the share of the masks."""
    source = draw_network()
    save_file(source.heads.state_dict(), tmp_path / "heads.safetensors")
    network = draw_network(heads=replace(HEADS, weights=str(tmp_path / "heads.safetensors")), mask_share=0.1)
    for name, tensor in source.heads.state_dict().items():
        assert torch.equal(network.heads.state_dict()[name], tensor), name


def test_the_mean_counts_included_frames_only() -> None:
    """Frames left out neither add nor divide; none at all is zero, with a gradient."""
    loss = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert float(shared_mean(loss, torch.tensor([True, False, True])).detach()) == 3.5
    nothing = shared_mean(loss, torch.tensor([False, False, False]))
    nothing.backward()
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"), ("c_fc", "q_proj")])
def test_fast_layers_are_pefts(targets: tuple[str, ...], of_all: bool) -> None:
    """Without dropout: the same output and gradients as peft's own forward on the same parameters, with masks of all
    frames or of one; merged, the same output again, and afterwards nothing is merged."""
    adapter = replace(ADAPTER, dropout=0.0, targets=targets)
    network = draw_network(adapter)
    plain = draw_network(adapter)
    plain.load_state_dict(network.state_dict())
    for module in plain.modules():
        module.__dict__.pop("forward", None)  # peft's and the tower's own
    images, rows = draw_images(), None if of_all else torch.tensor([1])
    for one in (network, plain):
        total(one, images, rows).backward()
    torch.testing.assert_close(network(images).presence, plain(images).presence, rtol=0, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert len([name for name in gradients if "lora_" in name]) == 2 * len(targets) * 2
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    expected = network(images).presence
    with torch.no_grad(), merged(network):
        torch.testing.assert_close(network(images).presence, expected, rtol=0, atol=1e-5)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        torch.testing.assert_close(network(images).presence, expected, rtol=0, atol=1e-5)
    assert (network(images).presence - expected).abs().max() > 1e-4


def test_attention_in_bfloat16_rounds_no_more_than_torchs() -> None:
    """On a CPU it is made of products. Output and gradient are as near to float64's as with PyTorch's own kernel."""
    torch.manual_seed(0)
    exact = Attention(64, 2).double()
    x, grad = torch.randn(3, 21, 64, dtype=torch.float64), torch.randn(3, 21, 64, dtype=torch.float64)

    def answer(attention: Attention, dtype: torch.dtype) -> list[Tensor]:
        given = x.clone().to(dtype).requires_grad_()
        out = attention(given)
        gradients = torch.autograd.grad(out, [given, attention.q_proj.weight], grad.to(dtype))
        return [part.detach().double() for part in (out, *gradients)]

    plain, fast = copy.deepcopy(exact).bfloat16(), copy.deepcopy(exact).bfloat16()
    speed_up(fast)
    found = [answer(*one) for one in ((exact, torch.float64), (plain, torch.bfloat16), (fast, torch.bfloat16))]
    assert not torch.equal(found[1][1], found[2][1])  # it is another computation
    for expected, by_torch, by_products in zip(*found, strict=True):
        assert (by_products - expected).norm() < 1.2 * (by_torch - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_leaves_out_its_share(dtype: torch.dtype) -> None:
    """An adapter that is the identity shows what its input became: elements are left out with the given probability,
    the others raised for it, the same ones for the same seed and in the gradient; none while the network is asked."""
    width, probability = 33, 0.25
    config = peft.LoraConfig(r=width, lora_alpha=width, lora_dropout=probability, target_modules=["0"])
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(width, width, bias=False)), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            parameter.copy_(torch.eye(width) if "lora_" in name else torch.zeros(width, width))
    adapted.to(dtype)
    speed_up(adapted)
    x = torch.ones(1001, width, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    seen = adapted(x)
    torch.manual_seed(3)
    assert torch.equal(adapted(x), seen)
    assert not torch.equal(adapted(x), seen)
    seen.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, seen.detach())
    kept = seen.detach().float()
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / (1 - probability)]), rtol=0, atol=0.004)
    # Within four standard deviations of 33,033 draws, each row and column with its share of them.
    assert float((kept == 0).float().mean()) == pytest.approx(probability, abs=0.0096)
    assert (kept == 0).float().mean(0).sub(probability).abs().max() < 0.07
    assert torch.equal(adapted.eval()(x), x)


def test_a_frozen_tower_in_half_precision_comes_back() -> None:
    """Inside frozen matrices are halves, adapters and heads float32; afterwards every weight is what it was, to the
    bit."""
    network = draw_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = draw_images()
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(images).presence
        with frozen_in(network.tower, torch.bfloat16):
            held = network(images).presence
            for name, parameter in network.named_parameters():
                if parameter.requires_grad:
                    assert parameter.dtype == torch.float32, name
            assert network.tower.base_model.model.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    torch.testing.assert_close(held, cast, rtol=0, atol=0.03)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
