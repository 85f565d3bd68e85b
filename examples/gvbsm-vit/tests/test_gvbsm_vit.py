import numpy as np
import pytest
import timm
import torch
from gvbsm_vit import TinyViT, TokenNorm

from gvbsm_registry import Backbone, Matcher
from gvbsm_registry.testing import PlainActivation, cases, check_plugin

VIT = TinyViT(width=16, depth=2).build(4, 16, 3)


@pytest.mark.parametrize(
    "case", [*cases(TokenNorm(), model=VIT), *cases(TinyViT(width=16, depth=2))], ids=str
)
def test_conforms(case):
    case()


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 3, 4)])
def test_statistics_are_over_everything_but_the_features(shape):
    tokens = np.random.default_rng(0).normal(3, 2, size=shape)
    found = TokenNorm().statistics(PlainActivation(torch.from_numpy(tokens)))
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(found["mean"].numpy(), tokens.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(found["var"].numpy(), tokens.var(axes), rtol=1e-4)


def test_sites_in_models_of_timm():
    assert TokenNorm().sites(VIT) == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.norm2",
        "fc_norm",
    ]
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=12, num_heads=(1, 2))
    assert "layers.0.blocks.0.norm1" in TokenNorm().sites(swin)
    convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    modules = dict(convnext.named_modules())
    assert "LayerNorm2d" in {type(module).__name__ for module in modules.values()}
    assert "LayerNorm2d" not in {type(modules[site]).__name__ for site in TokenNorm().sites(convnext)}


def test_is_a_plugin():
    registry = check_plugin("gvbsm_vit")
    assert registry.names(Matcher) == ["token_norm"]
    assert registry.names(Backbone) == ["vit_tiny"]
