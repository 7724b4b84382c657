"""Torch modules that training makes and inference runs.

Importing this package makes timm and torchvision importable; whoever needs them imports it first.
"""

from __future__ import annotations

from inspectbus.networks import torchvision_operators

torchvision_operators.declare()
