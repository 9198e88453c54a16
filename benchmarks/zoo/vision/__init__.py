"""Convolutional networks at their real depth and structure, with narrow layers and small images."""

from benchmarks.zoo.vision.convnext import convnext
from benchmarks.zoo.vision.densenet import densenet121
from benchmarks.zoo.vision.inception import inception_v3
from benchmarks.zoo.vision.mobilenet import mobilenet_v3
from benchmarks.zoo.vision.resnet import resnet50
from benchmarks.zoo.vision.unet import unet

__all__ = ["convnext", "densenet121", "inception_v3", "mobilenet_v3", "resnet50", "unet"]
