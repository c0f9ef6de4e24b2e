"""The fusion of one level as the sum of its parts."""

import torch
from torch.testing import assert_close

from training.models.unetmm.fusion import Fusion


def test_fusion_keeps_rows_and_columns_apart():
    torch.manual_seed(0)
    fusion = Fusion(8, position="none", is_cross_modal=True, dropout=0.0)
    features = torch.randn(2, 4, 8, 3, 5)
    tokens = features.permute(0, 3, 4, 1, 2).reshape(2, 15, 4, 8)
    merged = fusion.correlation(fusion.cross_modal(tokens))
    expected = torch.stack([merged[:, 5 * row : 5 * row + 5] for row in range(3)], dim=1)
    assert_close(fusion(features), expected.permute(0, 3, 1, 2))


def test_without_cross_modal_attention_the_modalities_are_only_weighed_and_merged():
    fusion = Fusion(8, position="none", is_cross_modal=False, dropout=0.0)
    features = torch.randn(2, 4, 8, 3, 5)
    merged = fusion.correlation(features.permute(0, 3, 4, 1, 2).reshape(2, 15, 4, 8))
    assert_close(fusion(features).flatten(2), merged.transpose(1, 2))
    assert not any(name.startswith("cross_modal") for name in fusion.state_dict())


def test_the_position_embedding_reaches_the_fusion():
    torch.manual_seed(0)
    fusion = Fusion(8, position="2d", is_cross_modal=True, dropout=0.0)
    fused = fusion(torch.zeros(1, 4, 8, 3, 5))
    assert not torch.allclose(fused[..., 0, 0], fused[..., 2, 4])
