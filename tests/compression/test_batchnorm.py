from __future__ import annotations

import torch
from torch import nn

from kitae.compression.batchnorm import reestimate_batchnorm
from kitae.compression.channels import remove_channels
from tests.compression.tiny_world import SHAPE, Data, TinyNet, accuracy


def test_statistics_are_those_of_the_images(train: Data) -> None:
    net = TinyNet().eval()
    net.norm.running_mean.fill_(9)
    reestimate_batchnorm(net, train.batches(768))
    images, _ = train.tensors()
    with torch.no_grad():
        features = net.stem(images)
    torch.testing.assert_close(net.norm.running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.norm.running_var, features.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert net.norm.momentum == 0.1
    assert not net.training
    assert not net.norm.training


def test_it_recovers_accuracy_after_pruning(trained: nn.Module, train: Data, selection: Data) -> None:
    pruned = remove_channels(trained, SHAPE, 0.4, batches=train.batches()).model
    before = accuracy(pruned, selection)
    reestimate_batchnorm(pruned, train.batches())
    assert accuracy(pruned, selection) > before + 0.1


def test_a_network_without_norms() -> None:
    reestimate_batchnorm(nn.Linear(2, 2), list)
