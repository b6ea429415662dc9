"""Checkpoints of the published code, made up in its shape, against an open_clip and peft rebuild of its models."""

import json
import pickle
from pathlib import Path

import open_clip
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.model.artifact import load_artifact
from algorithm.model.networks import PreprocessingConfig
from training.__main__ import main as training_main
from training.export.import_published import import_published

VISION = {"image_size": 112, "layers": 12, "width": 64, "patch_size": 14}
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 1, "layers": 1},
}
TAPS = (3, 4, 6, 12)  # 6, 8, 12, 24 of the published 24 blocks
IMAGE = 112


pytestmark = pytest.mark.usefixtures("one_thread")


class Wrapped(nn.Module):
    """A module under one name, as the published code nests its encoder."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


class Block(nn.Module):
    """Layers under the name `block`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers) if len(layers) > 1 else layers[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def conv_layers(channels: int, out: int) -> list[nn.Module]:
    """The published conv unit's layers."""
    return [
        Block(nn.Conv2d(channels, channels, 3, padding=1, groups=channels)),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        Block(nn.Conv2d(channels, out, 1)),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]


def unit(kind: str, channels: int, out: int) -> Block:
    """A unit of the published decoder: conv, deconv or up."""
    doubling = Block(nn.ConvTranspose2d(channels, channels, 2, stride=2, groups=channels))
    if kind == "conv":
        return Block(*conv_layers(channels, out))
    if kind == "deconv":
        return Block(doubling, *conv_layers(channels, out))
    return Block(doubling, Block(nn.Conv2d(channels, out, 1)))


def chain(*units: tuple[str, int, int]) -> nn.Sequential:
    """Several units in a row."""
    return nn.Sequential(*(unit(*one) for one in units))


class PublishedDecoder(nn.Module):
    """The published segmentation decoder, written from the table of its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decoder0 = chain(("conv", 3, 32), ("conv", 32, 32))
        self.decoder3 = chain(("deconv", width, 256), ("deconv", 256, 128), ("deconv", 128, 64))
        self.decoder6 = chain(("deconv", width, 256), ("deconv", 256, 128))
        self.decoder9 = unit("deconv", width, 256)
        self.decoder12_upsampler = unit("up", width, 256)
        self.decoder9_upsampler = chain(("conv", 512, 256), ("conv", 256, 256), ("conv", 256, 256), ("up", 256, 128))
        self.decoder6_upsampler = chain(("conv", 256, 128), ("conv", 128, 128), ("up", 128, 64))
        self.decoder3_upsampler = chain(("conv", 128, 64), ("conv", 64, 64), ("up", 64, 32))
        self.decoder0_header = nn.Sequential(unit("conv", 64, 32), unit("conv", 32, 32), Block(nn.Conv2d(32, 1, 1)))

    def forward(self, image: Tensor, z3: Tensor, z6: Tensor, z9: Tensor, z12: Tensor) -> Tensor:
        x = self.decoder9_upsampler(torch.cat([self.decoder9(z9), self.decoder12_upsampler(z12)], 1))
        x = self.decoder6_upsampler(torch.cat([self.decoder6(z6), x], 1))
        x = self.decoder3_upsampler(torch.cat([self.decoder3(z3), x], 1))
        return self.decoder0_header(torch.cat([self.decoder0(image), x], 1))


class Published(nn.Module):
    """A published model: encoder with peft's adapters, classifier or decoder. Its state dict is a checkpoint's."""

    def __init__(self, visual: nn.Module, head: str, *, lora: bool = True) -> None:
        super().__init__()
        self.visual = [visual]  # in a list: no second name in the state dict
        encoder = visual if head == "classifier" else Wrapped("transformer", Wrapped("visual_encoder", visual))
        settings = peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["c_fc", "c_proj", "out_proj"], bias="none"
        )
        self.encoder = peft.get_peft_model(encoder, settings) if lora else encoder
        if head == "classifier":
            self.classifier = nn.Linear(CONFIG["embed_dim"], 1)
        else:
            self.decoder = PublishedDecoder(VISION["width"])

    def presence(self, images: Tensor) -> Tensor:
        """Probability (B,)."""
        return self.classifier(self.visual[0](images)).sigmoid()[:, 0]

    def mask(self, images: Tensor) -> Tensor:
        """Probability (B, 112, 112)."""
        outputs: list[Tensor] = []
        blocks = [self.visual[0].transformer.resblocks[number - 1] for number in TAPS]
        hooks = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in blocks]
        self.visual[0](images)
        for hook in hooks:
            hook.remove()
        maps = []
        for tokens in outputs:
            grid = tokens[:, 1:].transpose(1, 2).reshape(len(images), -1, 8, 8)
            maps.append(F.interpolate(grid, (7, 7), mode="bilinear", align_corners=False))
        return self.decoder(images, *maps).sigmoid()[:, 0]


def make_visual(seed: int = 0) -> nn.Module:
    """A tiny visual tower of FetalCLIP's kind; one seed gives one tower."""
    torch.manual_seed(seed)
    return open_clip.model.CLIP(**CONFIG).visual


def make_published(head: str, seed: int, *, lora: bool = True, trained: bool = True) -> Published:
    """A published model with every trainable weight at random, on the tower of seed 0."""
    model = Published(make_visual(), head, lora=lora).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "lora_B" in name and trained:
                tensor.normal_(std=0.1)
            elif name.startswith("decoder") and name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.startswith(("decoder", "classifier")) and tensor.is_floating_point():
                # Of a convolution so that logits neither die nor grow: huge ones differ by rounding.
                spread = 0.2 if tensor.ndim < 4 else 1.5 * tensor[0].numel() ** -0.5
                tensor.normal_(1.0 if tensor.ndim == 1 and "weight" in name else 0.0, spread)
    return model


def save(model: nn.Module, path: Path, **extra: object) -> Path:
    """A Lightning checkpoint: the state dict among other things."""
    torch.save({"state_dict": model.state_dict(), "pytorch-lightning_version": "2.5.0", "epoch": 4} | extra, path)
    return path


def images(count: int = 3) -> Tensor:
    """Normalised images."""
    return torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(5))


def load(folder: Path) -> Ensemble:
    """The artifact as the container runs it, float32."""
    return Ensemble.from_artifact(load_artifact(folder), torch.device("cpu"), torch.float32)


@torch.no_grad()
def test_imported_members_equal_the_published_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Presence and masks of the artifact are those of the open_clip and peft models, dead out_proj factors included:
    this open_clip runs past them, which `--drop-out-proj` asks for."""
    first, second = make_published("classifier", 1), make_published("classifier", 2)
    segmenter = make_published("decoder", 3)
    paths = [save(model, tmp_path / f"{k}.ckpt") for k, model in enumerate((first, second, segmenter))]
    arguments = ["import", "--checkpoint", *map(str, paths), "--out", str(tmp_path / "model"), "--drop-out-proj"]
    assert training_main(arguments) == 0
    log = capsys.readouterr().out
    assert log.count("dropped the factors of 12 out_proj layers (12 of them not zero)") == 3
    ensemble = load(tmp_path / "model")
    manifest = ensemble.manifest
    assert [member.presence for member in manifest.members] == [True, True, False]
    assert manifest.members[2].decoder is not None
    assert (manifest.members[2].decoder.taps, manifest.members[2].decoder.grid_size) == (TAPS, 7)
    assert "out_proj" in manifest.provenance.notes
    presence = ensemble.score(images()).presence_probability
    for row, model in ((0, first), (1, second)):
        torch.testing.assert_close(presence[row], model.presence(images()), atol=1e-5, rtol=0)
    assert (first.presence(images()) - second.presence(images())).abs().max() > 1e-2
    mask = segmenter.mask(images())
    torch.testing.assert_close(ensemble.segment(images())[0], mask, atol=1e-5, rtol=0)
    assert mask.std() > 0.01
    share = (mask > 0.5).float().mean(dim=(1, 2))
    assert torch.equal(presence[2] > 0.5, share > 0.01)


@torch.no_grad()
def test_a_trained_out_proj_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A factor B that is not zero was trained where out_proj is a layer of its own: the member has W + B A alpha / r.
    One that is zero is left out."""
    model, segmenter = make_published("classifier", 1), make_published("decoder", 3)
    paths = [save(model, tmp_path / "cls.ckpt"), save(segmenter, tmp_path / "seg.ckpt")]
    import_published(paths, tmp_path / "used")
    assert capsys.readouterr().out.count("used the factors of 12 out_proj layers (12 of them not zero)") == 2
    import_published(paths, tmp_path / "dropped", drop_out_proj=True)
    untrained = {
        name: torch.zeros_like(t) if "out_proj.lora_B" in name else t for name, t in model.state_dict().items()
    }
    torch.save({"state_dict": untrained}, tmp_path / "zero.ckpt")
    import_published([tmp_path / "zero.ckpt", paths[1]], tmp_path / "zero")
    assert "zero.ckpt: dropped the factors of 12 out_proj layers (0 of them not zero)" in capsys.readouterr().out
    for block in model.visual[0].transformer.resblocks:
        layer = block.attn.out_proj
        layer.base_layer.weight += 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = model.presence(images())
    found, dropped = (load(tmp_path / n).score(images()).presence_probability[0] for n in ("used", "dropped"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (dropped - expected).abs().max() > 1e-3, "the adapters change nothing: nothing is tested"


@torch.no_grad()
def test_a_segmentation_checkpoint_without_lora_and_one_never_trained_give_no_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The released segmentation models: a frozen encoder, with zero adapters or without any."""
    plain, untrained = make_published("decoder", 4, lora=False), make_published("decoder", 5, trained=False)
    paths = [save(plain, tmp_path / "plain.ckpt"), save(untrained, tmp_path / "untrained.ckpt")]
    manifest = import_published(paths, tmp_path / "model")
    assert [member.adapter for member in manifest.members] == [False, False]
    assert "untrained.ckpt: dropped the adapter: all its B factors are zero" in capsys.readouterr().out
    masks = load(tmp_path / "model").segment(images())
    for row, model in ((0, plain), (1, untrained)):
        torch.testing.assert_close(masks[row], model.mask(images()), atol=1e-5, rtol=0)


@torch.no_grad()
def test_base_weights_come_from_a_clip_file_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    """A checkpoint with adapters and heads alone, and a whole CLIP's state dict for the tower."""
    model, segmenter = make_published("classifier", 1), make_published("decoder", 3)
    small = {k: v for k, v in model.state_dict().items() if "lora_" in k or k.startswith("classifier")}
    torch.save({"state_dict": small}, tmp_path / "small.ckpt")
    decoder = {k: v for k, v in segmenter.state_dict().items() if k.startswith("decoder")}
    torch.save({"state_dict": decoder}, tmp_path / "decoder.ckpt")
    torch.manual_seed(0)
    torch.save(open_clip.model.CLIP(**CONFIG).state_dict(), tmp_path / "clip.pt")
    paths = [tmp_path / "small.ckpt", tmp_path / "decoder.ckpt"]
    with pytest.raises(AcouslicError, match="give the base weights with --weights"):
        import_published(paths, tmp_path / "model")
    import_published(paths, tmp_path / "model", weights=tmp_path / "clip.pt", drop_out_proj=True)
    presence = load(tmp_path / "model").score(images()).presence_probability[0]
    torch.testing.assert_close(presence, model.presence(images()), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("stated", [{}, {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}])
def test_a_configuration_says_what_the_tower_takes(stated: dict[str, list[float]], tmp_path: Path) -> None:
    """Mean and deviation of the hub's form; where it names none, CLIP's."""
    path = save(make_published("decoder", 3), tmp_path / "seg.ckpt")
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": stated}))
    found = import_published([path], tmp_path / "model", config_path=config).preprocessing
    usual = PreprocessingConfig()
    assert found.mean == pytest.approx(stated.get("mean", usual.mean))
    assert found.std == pytest.approx(stated.get("std", usual.std))
    assert not found.antialias


@torch.no_grad()
def test_an_adapter_on_whole_attentions_keeps_its_out_proj(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It acts as peft has it, and a note says how; to leave its out_proj out is refused."""
    model = make_published("decoder", 3)
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["attn", "c_fc"], bias="none")
    visual = make_visual()
    model.visual = [visual]
    model.encoder = peft.get_peft_model(Wrapped("transformer", Wrapped("visual_encoder", visual)), settings).eval()
    for name, tensor in model.state_dict().items():
        if "lora_B" in name:
            tensor.normal_(std=0.1)
    path = save(model, tmp_path / "attention.ckpt")
    with pytest.raises(
        AcouslicError, match=r"attention\.ckpt adapts whole attention modules.* leave --drop-out-proj out"
    ):
        import_published([path], tmp_path / "model", drop_out_proj=True)
    import_published([path], tmp_path / "model")
    assert "attention.ckpt: counted out_proj's update twice" in capsys.readouterr().out
    masks = load(tmp_path / "model").segment(images())
    torch.testing.assert_close(masks[0], model.mask(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, -3.0, float("nan"), float("inf")])
def test_an_alpha_that_none_trains_with_is_refused(alpha: float, tmp_path: Path) -> None:
    """0 would leave every adapter without effect."""
    with pytest.raises(AcouslicError, match="--lora-alpha must be above 0"):
        import_published([save(make_published("decoder", 3), tmp_path / "seg.ckpt")], tmp_path / "model", alpha=alpha)


def test_a_half_precision_tower_is_half_the_size(tmp_path: Path) -> None:
    """`half` stores the tower in float16 and nothing else."""
    path = save(make_published("decoder", 3), tmp_path / "seg.ckpt")
    import_published([path], tmp_path / "half", half=True)
    artifact = load_artifact(tmp_path / "half")
    assert {tensor.dtype for tensor in artifact.tower_state.values()} == {torch.float16}
    assert artifact.members[0].heads["decoder.decoder0.0.block.0.block.weight"].dtype == torch.float32


class Payload:
    """What a checkpoint with code in it could hold."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/this-was-run"),))


def change(model: Published, name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    """The model's state with one tensor replaced, or removed."""
    state = {**model.state_dict()}
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    return state


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that would run something ends with one clear sentence, and does not run."""
    target = tmp_path / "was-run"
    Payload.__reduce__ = lambda _self: (Path.touch, (target,))  # type: ignore[method-assign]
    path = save(make_published("decoder", 3), tmp_path / "evil.ckpt", hyper_parameters=Payload())
    assert training_main(["import", "--checkpoint", str(path), "--out", str(tmp_path / "model")]) == 1
    message = capsys.readouterr().err.strip()
    assert "evil.ckpt holds more than tensors and is not loaded: code or objects (" in message
    assert len(message.splitlines()) == 1
    assert not target.exists()
    assert not (tmp_path / "model").exists()
    with (tmp_path / "bare.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file, protocol=2)
    with pytest.raises(AcouslicError, match=r"is not loaded|not a readable"):
        import_published([tmp_path / "bare.ckpt"], tmp_path / "model")
    assert not target.exists()


def test_checkpoints_of_different_towers_are_refused(tmp_path: Path) -> None:
    """One number of the frozen tower is enough."""
    model = make_published("decoder", 3)
    name = "encoder.base_model.model.transformer.visual_encoder.transformer.resblocks.7.ln_1.weight"
    other = model.state_dict()[name].clone()
    other[3] += 1e-3
    torch.save({"state_dict": change(model, name, other)}, tmp_path / "other.ckpt")
    paths = [save(model, tmp_path / "one.ckpt"), tmp_path / "other.ckpt"]
    with pytest.raises(AcouslicError, match=r"other\.ckpt: tensor 'transformer\.resblocks\.7\.ln_1\.weight'"):
        import_published(paths, tmp_path / "model")


SEG_PREFIX = "encoder.base_model.model.transformer.visual_encoder."


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("decoder.decoder9.block.2.running_var", None, "running_var"),
        ("decoder.decoder9.block.9.weight", torch.zeros(3), r"decoder\.decoder9\.block\.9\.weight"),
        (SEG_PREFIX + "transformer.resblocks.0.mlp.c_fc.lora_B.default.weight", None, "c_fc.lora_B.weight"),
        (SEG_PREFIX + "transformer.resblocks.0.mlp.c_fc.lora_A.default.weight", torch.zeros(3, 64), "one rank"),
        (SEG_PREFIX + "transformer.resblocks.0.mlp.c_fc.lora_A.second.weight", torch.zeros(8, 64), "'second'"),
        (
            SEG_PREFIX + "transformer.resblocks.0.mlp.c_fc.lora_magnitude_vector",
            torch.zeros(8),
            r"seg.*magnitude_vector\)",
        ),
        ("decoder.decoder0_header.2.block.weight", torch.zeros(2, 32, 1, 1), r"seg\.ckpt: tensor .*decoder0_header"),
        (SEG_PREFIX + "transformer.resblocks.11.ln_2.bias", None, r"resblocks\.11\.ln_2\.bias"),
    ],
)
def test_checkpoints_that_are_not_of_the_published_shape_are_refused(
    tmp_path: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    """A tensor missing, too many or of another kind is named, and no artifact is left."""
    torch.save({"state_dict": change(make_published("decoder", 3), name, tensor)}, tmp_path / "seg.ckpt")
    with pytest.raises(AcouslicError, match=message):
        import_published([tmp_path / "seg.ckpt"], tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["seg.ckpt"]


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    """Missing, damaged, without heads, and classifiers without any decoder."""
    with pytest.raises(AcouslicError, match=r"none\.ckpt is missing"):
        import_published([tmp_path / "none.ckpt"], tmp_path / "model")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(AcouslicError, match=r"cut\.ckpt is not a readable"):
        import_published([tmp_path / "cut.ckpt"], tmp_path / "model")
    torch.save({"state_dict": {"encoder.proj": torch.zeros(2, 2)}}, tmp_path / "headless.ckpt")
    with pytest.raises(AcouslicError, match="no published checkpoint"):
        import_published([tmp_path / "headless.ckpt"], tmp_path / "model")
    with pytest.raises(AcouslicError, match="add a segmentation one"):
        import_published([save(make_published("classifier", 1), tmp_path / "cls.ckpt")], tmp_path / "model")
