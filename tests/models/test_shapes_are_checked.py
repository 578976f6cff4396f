"""The annotations of shapes are enforced while these tests run."""

import jaxtyping
import pytest
import torch

from models.blocks.norm import RMSNorm


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU shapes are not checked: tests/conftest.py")
def test_a_tensor_of_another_shape_than_annotated_is_refused():
    assert RMSNorm(8, 1e-5)(torch.ones(2, 3, 8)).shape == (2, 3, 8)
    with pytest.raises(jaxtyping.TypeCheckError):
        RMSNorm(8, 1e-5)(torch.ones(3, 8))
