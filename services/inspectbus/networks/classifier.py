"""The network: prepared pixels in, one logit per image out. Normalisation is inside, so nobody can forget it.

uint8 (N, H, W, 3) RGB ─> normalise ─> backbone (timm or torchvision, pooled) ─> dropout ─> linear ─> logit (N,)
                                          └ last feature map ─> the linear layer at each place ─> heatmap (N, h, w)

A network of several views judges an image and its flips, and gives the mean of their logits: whatever runs it, PyTorch
or a graph made of it, does so too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
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

    def explained(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (N,) as `forward` gives them and, from the same pass, the heatmap: float32 (N, h, w), in logits.

        It is the class activation map: the head's weights over the last feature map (Zhou et al., Learning Deep
        Features for Discriminative Localization, CVPR 2016, equation 2). Pooling is a mean and the head is linear, so
        its mean plus the head's bias is the logit: nothing that made the score is left out, and nothing is added. Of
        several views it is the mean of their maps, each turned back. None where `explains` is false.
        """
        if (stages := self._stages) is None:
            return self(images), None
        maps = self.seen(self.normalise(images))
        for stage in stages:
            maps = stage(maps)
        heatmaps = nn.functional.conv2d(maps, self.head.weight[:, :, None, None]).squeeze(1)
        return self.together(self.judge(maps.mean((2, 3)))), self._back(heatmaps.float())

    def _back(self, heatmaps: Tensor) -> Tensor:
        """Maps (views * N, h, w) of `seen` pixels, each turned back, to the images' own, (N, h, w)."""
        if self.views == 1:
            return heatmaps
        each = heatmaps.view(self.views, -1, *heatmaps.shape[1:]).unbind()
        # A map has no axis of channels, so its height and width lie one nearer.
        turned = [
            view.flip([axis - 1 for axis in axes]) if axes else view for view, axes in zip(each, FLIPS, strict=False)
        ]
        return torch.stack(turned).mean(0)

    @property
    def explains(self) -> bool:
        """Whether there is a heatmap: the backbone's last step must be a mean over the places of a feature map."""
        return self._stages is not None

    @cached_property
    def _stages(self) -> list[nn.Module] | None:
        """The backbone's parts up to its last feature map. None when the features are no mean over the map's places."""
        try:
            links = self.chain()
        except BadField:
            return None
        with self._looking():
            maps = probe = self._probe()
            features, last = self.backbone(probe), 0
            for number, (_, link) in enumerate(links, 1):
                maps = link(maps)
                # One place alone would be its own mean, its maximum and everything else.
                if maps.ndim == 4 and maps.shape[:2] == features.shape and maps.shape[2:].numel() > 1:
                    last = number if torch.allclose(maps.mean((2, 3)), features, rtol=1e-4, atol=1e-5) else 0
        return [link for _, link in links[:last]] or None

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
        with self._looking():
            try:
                chained = probe = self._probe()
                for _, link in links:
                    chained = link(chained)
                return torch.equal(chained, self.backbone(probe))
            except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError):
                # Each backbone has its own way of saying that shapes or arguments do not fit.
                return False

    def _probe(self) -> Tensor:
        return torch.linspace(-1, 1, 3 * 64 * 64, device=self.mean.device).view(1, 3, 64, 64)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """The backbone in evaluation mode for a while, each of its modules in its own again afterwards."""
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()
        try:
            with torch.inference_mode():
                yield
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
