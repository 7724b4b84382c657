"""The network: prepared pixels in, one logit per image out. Normalisation is inside, so nobody can forget it.

uint8 (N, H, W, 3) RGB ─> normalise ─> backbone (timm or torchvision, pooled) ─> dropout ─> linear ─> logit (N,)

A network of several views judges an image and its flips, and gives the mean of their logits: whatever runs it, PyTorch
or a graph made of it, does so too.
"""

from __future__ import annotations

from typing import cast

import timm
import torch
import torchvision
from torch import Tensor, nn

from inspectbus.domain.model_version import Architecture, Normalisation
from inspectbus.errors import BadField

FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Views of a batch by the axes of (N, C, H, W) that are turned: as it is, left-right, up-down, both."""


class Classifier(nn.Module):
    """One logit for DEFECTIVE per image. Weights lie channels-last, as do the images once normalised."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, features: int, dropout: float, normalisation: Normalisation, views: int = 1
    ) -> None:
        super().__init__()
        self.views = views
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, 1)
        # Not persistent: the card owns these numbers, and weights that carried others could contradict it.
        for name in ("mean", "std"):
            channels = torch.tensor(getattr(normalisation, name), dtype=torch.float32)
            self.register_buffer(name, channels.view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs forgot this form

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) RGB to float32 logits (N,)."""
        return self.together(self.judge(self.backbone(self.seen(self.normalise(images)))))

    def seen(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in all views, one after the other: (views * N, 3, H, W)."""
        if self.views == 1:
            return pixels
        # In one batch: a graph made of this holds the backbone once.
        return torch.cat([pixels.flip(axes) if axes else pixels for axes in FLIPS[: self.views]])

    def together(self, logits: Tensor) -> Tensor:
        """Logits (views * N,) of `seen` pixels to the images' own, (N,)."""
        return logits if self.views == 1 else logits.view(self.views, -1).mean(0)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in channels-last memory: the same order of bytes, no copy."""
        return normalised(images, self.mean, self.std)

    def judge(self, features: Tensor) -> Tensor:
        """Pooled features (N, F) to float32 logits (N,)."""
        return cast(Tensor, self.head(self.dropout(features))).squeeze(1).float()

    def chain(self) -> list[tuple[str, nn.Module]]:
        """The backbone as a chain of (name, module), first to last, to be cut between any two.

        EfficientNets give conv_stem, bn1, blocks.0 ... blocks.6, conv_head, bn2, global_pool, classifier. The modules
        are the backbone's own: training them trains it. Raises BadField for a backbone that does more in its forward
        than call its parts in order.
        """
        links: list[tuple[str, nn.Module]] = []
        for name, child in self.backbone.named_children():
            opened = list(child.named_children()) if type(child) is nn.Sequential else []
            links += [(f"{name}.{inner}", part) for inner, part in opened] or [(name, child)]
        if self._same(links):
            return links
        # torchvision flattens between two of its modules, by a function.
        pooled = next((i + 1 for i, (name, _) in enumerate(links) if name == "avgpool"), len(links))
        links.insert(pooled, ("flatten", nn.Flatten()))
        if self._same(links):
            return links
        raise BadField(
            f"{type(self.backbone).__name__} is not a plain chain of modules and cannot be cut", field="backbone"
        )

    def _same(self, links: list[tuple[str, nn.Module]]) -> bool:
        modes = [(module, module.training) for module in self.backbone.modules()]
        probe = torch.linspace(-1, 1, 3 * 64 * 64, device=self.mean.device).view(1, 3, 64, 64)
        try:
            self.backbone.eval()
            with torch.inference_mode():
                chained = probe
                for _, link in links:
                    chained = link(chained)
                return torch.equal(chained, self.backbone(probe))
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError):
            # Each backbone has its own way of saying that shapes or arguments do not fit.
            return False
        finally:
            for module, training in modes:
                module.training = training


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixel - mean) / std of uint8 (N, H, W, 3), per channel: float32 (N, 3, H, W) in channels-last memory."""
    return (images.permute(0, 3, 1, 2).float() - mean) / std


def build(architecture: Architecture, normalisation: Normalisation) -> Classifier:
    """The network with fresh weights; nothing is downloaded. Raises BadField for a backbone nobody knows."""
    backbone, features = _backbone(architecture.backbone)
    return Classifier(backbone, features, architecture.dropout, normalisation, architecture.views)


def _backbone(name: str) -> tuple[nn.Module, int]:
    """A backbone that ends in its pooled features, and how many there are."""
    library, _, bare = name.rpartition("/")
    if library in ("", "timm") and timm.is_model(bare):
        network = timm.create_model(bare, pretrained=False, num_classes=0)
        return network, cast(int, getattr(network, "head_hidden_size", None) or network.num_features)
    if library in ("", "torchvision") and bare in torchvision.models.list_models(module=torchvision.models):
        network = torchvision.models.get_model(bare, weights=None)
        return network, _without_last_linear(network, name)
    raise BadField(f"no timm or torchvision backbone is called {name!r}", field="backbone")


def _without_last_linear(network: nn.Module, name: str) -> int:
    """torchvision has no word for 'features only': its last linear layer becomes an identity. Gives the width there."""
    linears = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or hasattr(network, "aux_logits"):
        raise BadField(f"{name!r} does not end in one linear layer; take another backbone", field="backbone")
    last = cast(nn.Linear, network.get_submodule(linears[-1]))
    network.set_submodule(linears[-1], nn.Identity())
    return last.in_features
