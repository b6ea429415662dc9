"""Adding and normalising in one step: the plain operations on a CPU, the kernel of our own on a GPU."""

import pytest
import torch
from torch.nn import functional as F

from algorithm.engine import cuda_kernel, fused_norm
from algorithm.engine.fused_norm import add_and_normalise
from test.conftest import skip_or_fail

SHAPES = {
    "alike": ((2, 3, 5), (2, 3, 5)),
    "shared stream": ((1, 3, 5), (4, 3, 5)),
    "shared branch": ((4, 3, 5), (1, 3, 5)),
    "nothing to add": ((2, 3, 5), None),
}


def inputs(shapes, width, dtype, device="cpu"):
    """Stream, branch and norm with numbers far from zero mean and unit deviation."""
    random = torch.Generator().manual_seed(1)
    x, branch = (None if shape is None else 3 + 10 * torch.randn(*shape, width, generator=random) for shape in shapes)
    norm = (1 + torch.randn(width, generator=random), torch.randn(width, generator=random))
    branch = None if branch is None else branch.to(device, dtype)
    return x.to(device), branch, tuple(part.to(device) for part in norm)


def exactly(x, branch, norm, eps):
    """The same in float64."""
    x = x.double() if branch is None else x.double() + branch.double()
    return x, F.layer_norm(x, x.shape[-1:], *(part.double() for part in norm), eps)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_operations(shapes, dtype):
    """Sum in float32, normalised values in the type that was asked for; rows repeat where there is one only."""
    x, branch, norm = inputs(shapes, 96, dtype)
    added, normalised = add_and_normalise(x, branch, norm, 1e-5, dtype)
    expected, expected_normalised = exactly(x, branch, norm, 1e-5)
    assert (added.dtype, normalised.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(added.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalised.double(), expected_normalised, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "dtype"), [(75, "float16"), (80, "bfloat16"), (90, "float16"), (90, "bfloat16")]
)
@pytest.mark.parametrize("width", [128, 1024, 2048])
def test_it_compiles_for_cards_from_a_t4_to_an_h100(capability, dtype, width):
    """Which takes no GPU, but the compiler that torch's CUDA build brings along."""
    if torch.version.cuda is None:
        skip_or_fail("this torch is built without CUDA")
    options = [f"--gpu-architecture=sm_{capability}", *fused_norm._options(getattr(torch, dtype), width)]
    assert cuda_kernel._compile(fused_norm._SOURCE, "add_and_normalise", options)[:4] == b"\x7fELF"


def test_what_the_compiler_says_is_told():
    """A T4 has no bfloat16."""
    if torch.version.cuda is None:
        skip_or_fail("this torch is built without CUDA")
    options = ["--gpu-architecture=sm_75", *fused_norm._options(torch.bfloat16, 128)]
    with pytest.raises(RuntimeError, match=r"NVRTC: .*bf16"):
        cuda_kernel._compile(fused_norm._SOURCE, "add_and_normalise", options)


def test_without_a_compiler_the_plain_operations_do_it(monkeypatch, caplog):
    """A torch without CUDA, a missing library, a card that NVRTC does not know: no kernel, and a line in the log."""
    for error in (OSError("libnvrtc.so.13 was not found"), RuntimeError("NVRTC: invalid value for --gpu-architecture")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(fused_norm, "CudaKernel", fail)
        fused_norm._kernel.cache_clear()
        with caplog.at_level("INFO"):
            assert fused_norm._kernel(torch.device("cuda", 0), torch.float16, 1024) is None
        assert caplog.messages[-1] == f"adding and normalising take two steps: {error}"
    fused_norm._kernel.cache_clear()
    assert fused_norm.prepare(torch.device("cpu"), torch.float16, 1024) is False


@pytest.mark.gpu
@pytest.mark.parametrize("width", [128, 384, 1024, 1280, 2048])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel(shapes, dtype, width):
    """The kernel is there, and gives what float64 gives, rounded once; the sum to the bit what torch gives."""
    x, branch, norm = inputs(shapes, width, dtype, "cuda")
    assert fused_norm._kernel(x.device, dtype, width) is not None
    added, normalised = add_and_normalise(x, branch, norm, 1e-5, dtype)
    _, expected = exactly(x, branch, norm, 1e-5)
    assert torch.equal(added, x if branch is None else x + branch)
    torch.testing.assert_close(normalised.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.gpu
def test_widths_without_a_kernel():
    """Other widths take the plain operations on a GPU too."""
    x, branch, norm = inputs(SHAPES["alike"], 96, torch.float16, "cuda")
    added, normalised = add_and_normalise(x, branch, norm, 1e-5, torch.float16)
    assert torch.equal(added, x + branch)
    assert torch.equal(normalised, F.layer_norm(added, (96,), *norm, 1e-5).half())


@pytest.mark.gpu
def test_a_part_of_the_tokens():
    """The class token alone, a view with gaps, is read as what it is."""
    x, branch, norm = inputs(SHAPES["alike"], 128, torch.float16, "cuda")
    added, _ = add_and_normalise(x[:, :, :1], branch[:, :, :1], norm, 1e-5, torch.float16)
    assert torch.equal(added, x[:, :, :1] + branch[:, :, :1])
