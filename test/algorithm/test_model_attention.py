"""Attention in bfloat16 on a CPU, and of one query on a GPU, against PyTorch's own kernel and against float64."""

import pytest
import torch
from torch.nn import functional as F

from algorithm.engine import attention
from algorithm.engine.attention import attend


def tokens_of(*, queries=257, tokens=257, spread=1.0):
    """Queries, keys and values of three images, four heads; the scores' standard deviation is `spread`."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(3, queries, 4, 64, generator=generator) * spread
    k, v = torch.randn(2, 3, tokens, 4, 64, generator=generator)
    return [part.transpose(1, 2) for part in (q, k, v)]


def relative_error(found, expected):
    """Root mean square of the difference, relative to the expected values'."""
    return float((found.float() - expected).norm() / expected.norm())


@pytest.fixture(params=["with AMX", "without AMX"])
def either_way(request, monkeypatch):
    """Both ways of bfloat16 on a CPU, whatever this one has."""
    monkeypatch.setattr(attention, "_multiplies_tiles", lambda: request.param == "with AMX")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("spread", [1.0, 6.0])
@pytest.mark.parametrize(("queries", "tokens"), [(257, 257), (153, 153), (1, 257)])
def test_bfloat16_is_about_as_exact_as_pytorchs_own(queries, tokens, spread):
    """Flat or sharp attention: with scores rounded to bfloat16 too, the error would be 2 and 6 times PyTorch's."""
    parts = [part.bfloat16() for part in tokens_of(queries=queries, tokens=tokens, spread=spread)]
    exact = F.scaled_dot_product_attention(*(part.double() for part in parts)).float()
    ours, theirs = attend(*parts), F.scaled_dot_product_attention(*parts)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, exact) < 1.4 * relative_error(theirs, exact)


@pytest.mark.usefixtures("either_way")
def test_an_image_does_not_see_the_others():
    """Alone or in a batch, an image gets the same to the bit."""
    parts = [part.bfloat16() for part in tokens_of()]
    together = attend(*parts)
    for index in range(3):
        assert torch.equal(attend(*(part[index : index + 1] for part in parts)), together[index : index + 1])


def test_float32_is_pytorchs_own():
    """Nothing but bfloat16 on a CPU takes the other way."""
    parts = tokens_of(queries=5, tokens=9)
    assert torch.equal(attend(*parts), F.scaled_dot_product_attention(*parts))


def test_with_amx_bfloat16_is_pytorchs_own_too(monkeypatch):
    """What the processor says of itself decides."""
    parts = [part.bfloat16() for part in tokens_of(spread=6.0)]
    theirs = F.scaled_dot_product_attention(*parts)
    for flags, same in (({"avx512_bf16", "amx_bf16"}, True), ({"avx512_bf16"}, False)):
        attention._multiplies_tiles.cache_clear()
        monkeypatch.setattr(attention, "cpu_flags", lambda flags=flags: flags)
        assert torch.equal(attend(*parts), theirs) == same
    attention._multiplies_tiles.cache_clear()


def test_one_query_on_a_gpu_is_exact_too():
    """The way that the class token takes on a GPU, run on the CPU."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        parts = [part.to(dtype) for part in tokens_of(queries=1)]
        exact = F.scaled_dot_product_attention(*(part.double() for part in parts)).float()
        found = attention.attend_with_one_query(*parts)
        assert found.dtype == dtype
        assert found.shape == exact.shape
        assert relative_error(found, exact) < max(torch.finfo(dtype).eps, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 257])
def test_a_gpu_repeats_itself(queries):
    """The batch of a whole ViT-L: the same bits every time. cuDNN's kernel for one query alone does not."""
    parts = [torch.randn(128, 16, count, 64, device="cuda").half() for count in (queries, 257, 257)]
    expected = attend(*parts)
    for _ in range(8):
        assert torch.equal(attend(*parts), expected)
