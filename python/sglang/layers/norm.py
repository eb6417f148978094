"""RMSNorm (arXiv 1910.07467), computed in float32 whatever the type of its input."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., hidden]; weight: [hidden]."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
