"""ResNet-18 for small images, as an architecture of timm: importing this file makes it known.

timm's ResNet starts with a 7 x 7 convolution of stride 2 and pooling, and has no argument to leave
them out. Here the first convolution is 3 x 3 with stride 1 and nothing is pooled, as is usual at 32
pixels (Chen et al. 2020, appendix B.9). Without the classifier 11,168,832 parameters, as
torchvision's ResNet-18 with the same stem.
"""

from typing import Any

from timm.models import register_model
from timm.models.resnet import ResNet, resnet18
from torch import nn


@register_model
def resnet18_cifar(pretrained: bool = False, **arguments: Any) -> ResNet:
    """ResNet-18 that keeps the resolution of its input up to the second stage."""
    network = resnet18(pretrained, **arguments)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network
