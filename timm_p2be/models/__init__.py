"""Importing this package registers the RGB networks for 32x32 images and every encoded model with timm."""

from timm_p2be.models import (
    densenet_cifar,
    encoded_backbone,
    encoded_cifar,
    encoded_resnet,
    resnext_cifar,
    wideresnet_cifar,
)

__all__ = [
    'densenet_cifar',
    'encoded_backbone',
    'encoded_cifar',
    'encoded_resnet',
    'resnext_cifar',
    'wideresnet_cifar',
]
