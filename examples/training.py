"""The model side of the demo, which knows nothing of optimd: images, a network, and a loop around any optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 64


class Digits(NamedTuple):
    """1,797 handwritten digits of 8 × 8 pixels, standardised: four fifths to train with, one fifth to test with.

    Images have the shape [n, 1, 8, 8], labels [n].
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls) -> Digits:
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
        train_images, test_images, train_labels, test_labels = map(torch.as_tensor, parts)
        mean, std = train_images.mean(), train_images.std()
        train_images, test_images = (((x - mean) / std).float().view(-1, 1, 8, 8) for x in (train_images, test_images))
        return cls(train_images, train_labels, test_images, test_labels)


def network(seed: int) -> nn.Module:
    """Two convolutions with batch normalisation and a linear layer: 6,186 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 2 * 2, 10)),
    )


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, epochs: int, seed: int
) -> Iterator[float]:
    """Take every image once an epoch, in batches of 64, and yield the epoch's mean loss."""
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(digits.train_images), generator=shuffle)
        losses = [
            step(model, optimizer, digits.train_images[batch], digits.train_labels[batch])
            for batch in order.split(BATCH)
        ]
        yield sum(losses) / len(losses)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    def closure() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss.item()

    return optimizer.step(closure)


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of the test images that the model reads correctly."""
    model.eval()
    with torch.no_grad():
        return float((model(digits.test_images).argmax(1) == digits.test_labels).float().mean())
