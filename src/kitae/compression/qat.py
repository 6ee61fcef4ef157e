"""Quantization-aware training: the network is fine-tuned with the rounding of its deployment.

PyTorch's export-based flow (torchao PT2E) puts a simulated quantizer wherever `quantize.static` will put a real one: on
the inputs of convolutions, linear layers and additions, on their outputs after BatchNorm and ReLU, and on every weight
with BatchNorm folded in (Jacob et al. 2018). The trained weights are then copied back into the original network, which
is exported and quantized like any other. So static and QAT files differ only in their weights, and are equally fast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kitae.compression.least_squares import Batches
from kitae.compression.spec import Target
from kitae.console import quiet
from kitae.errors import CompressionError, one_line, require
from kitae.modes import GENERATORS

_WEIGHTED = ("aten.conv2d.default", "aten.conv1d.default", "aten.linear.default")
_SUMS = ("aten.add.Tensor", "aten.add_.Tensor", "aten.mul.Tensor", "aten.mul_.Tensor")
_NORMS = ("aten.batch_norm.default",)
_CLAMPS = ("aten.relu.default", "aten.relu_.default", "aten.hardtanh.default", "aten.hardtanh_.default")


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Silence torchao, and restore torch's generator, from which it draws inputs to trace its patterns with."""
    with GENERATORS, torch.random.fork_rng(devices=[]), quiet():
        yield


class Simulated(nn.Module):
    """A network with simulated quantizers, which trains and evaluates like any other module.

    In training mode the quantizers update their ranges; in eval mode the ranges are fixed. Always runs in float32, even
    under autocast, so that it learns the rounding to 8 bits and not that to bfloat16.

    Args:
        model: not changed; it may be in any mode, on any device.
        input_shape: (C, H, W) of an image.
        target: weights are in [-64, 64] for `any`, in [-127, 127] for `vnni`.

    Raises:
        CompressionError: the network cannot be traced.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int], target: Target = "any") -> None:
        super().__init__()
        # Traced in eval mode: stochastic depth is the identity there, and dropout and BatchNorm can be switched back.
        source = copy.deepcopy(model).train()
        norms = [module for module in source.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._frozen = bool(norms) and not any(norm.training for norm in norms)
        source.eval()
        device = next(source.parameters()).device
        example = torch.zeros(2, *input_shape, device=device)
        with _unnoticed():
            flow = require("torchao.quantization.pt2e.quantize_pt2e")
            try:
                program = torch.export.export(
                    source, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
                )
                self.graph: nn.Module = flow.prepare_qat_pt2e(program.module(), _quantizer(target))
            except Exception as error:
                raise CompressionError(
                    f"the network cannot be traced for quantization-aware training: {one_line(error)}"
                ) from error
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float images [N, C, H, W] -> logits float32 [N, K]."""
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.graph(images.float())
        return logits

    def train(self, mode: bool = True) -> Simulated:
        """Switch BatchNorm, dropout and the quantizers' observers; an exported graph does not do that by itself."""
        tools = require("torchao.quantization.pt2e")
        self.training = mode
        with _unnoticed():
            if mode and not self._frozen:
                tools.move_exported_model_to_train(self.graph)
            else:  # with frozen statistics, dropout stays off as well
                tools.move_exported_model_to_eval(self.graph)
            self.graph.apply(tools.enable_observer if mode else tools.disable_observer)
        return self

    def observe(self, batches: Batches) -> Simulated:
        """Set the quantizers' ranges from training images, before training begins; nothing else is changed."""
        tools = require("torchao.quantization.pt2e")
        mode = self.training
        self.train(False)
        self.graph.apply(tools.enable_observer)
        with torch.no_grad():
            for images, _ in batches():
                self(images)
        return self.train(mode)

    def weights_into(self, model: nn.Module) -> nn.Module:
        """A copy of the network this was made from, with the weights and BatchNorm statistics learnt here."""
        trained = copy.deepcopy(model)
        learnt, state = self.graph.state_dict(), trained.state_dict()
        for name in state:
            if name in learnt:
                state[name] = learnt[name]
            elif not name.endswith("num_batches_tracked"):  # a layer that is unused, or used twice
                raise CompressionError(f"the weight {name} was lost in tracing; use --quantize static instead of qat")
        trained.load_state_dict(state)
        return trained


def _quantizer(target: Target) -> Any:
    """The places and kinds of the simulated quantizers."""
    base = require("torchao.quantization.pt2e.quantizer")
    fake = require("torchao.quantization.pt2e.fake_quantize")
    observer = require("torchao.quantization.pt2e.observer")
    activation = base.QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=fake.FusedMovingAvgObsFakeQuantize.with_args(
            observer=observer.MovingAverageMinMaxObserver
        ),
    )
    # CPUs without VNNI add two 8-bit products in 16 bits, which saturate. With weights in [-64, 64] they cannot.
    limit = 127 if target == "vnni" else 64
    # averaging_constant 1: the range of the weights as they are now, not an average over earlier steps.
    weight = base.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit,
        quant_max=limit,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=fake.FusedMovingAvgObsFakeQuantize.with_args(
            observer=observer.MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
        ),
    )

    class Placement(base.Quantizer):  # type: ignore[misc, name-defined]
        """Quantizers where `quantize.static` has them."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            nodes = [node for node in model.graph.nodes if node.op == "call_function"]
            weighted = [node for node in nodes if str(node.target) in _WEIGHTED]
            body = _between(nodes, weighted)
            products_only = any(str(node.target).startswith("aten.layer_norm") for node in nodes)
            for node in nodes:
                terms = [arg for arg in node.args[:2] if isinstance(arg, torch.fx.Node)]
                if node in weighted:
                    self._mark(node, inputs={node.args[0]: activation, node.args[1]: weight})
                elif str(node.target) in _SUMS and node in body and len(set(terms)) == 2 and not products_only:
                    self._mark(node, inputs=dict.fromkeys(terms, activation))
                else:
                    continue
                if node is not weighted[-1] and not products_only:
                    self._mark(_end_of_chain(node), output=activation)
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

        def _mark(self, node: torch.fx.Node, inputs: dict[Any, Any] | None = None, output: Any = None) -> None:
            known = node.meta.setdefault("quantization_annotation", base.QuantizationAnnotation(_annotated=True))
            known.input_qspec_map |= inputs or {}
            known.output_qspec = output or known.output_qspec

    return Placement()


def _between(nodes: list[torch.fx.Node], weighted: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """Nodes with a weighted node both upstream and downstream."""
    after: set[torch.fx.Node] = set()
    for node in nodes:
        if node in weighted or any(source in after for source in node.all_input_nodes):
            after.add(node)
    before: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        if node in weighted or any(user in before for user in node.users):
            before.add(node)
    return after & before


def _end_of_chain(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose output is quantized for a layer: after its BatchNorm and its ReLU."""
    for kinds in (_NORMS, _CLAMPS):
        users = list(node.users)
        if len(users) == 1 and str(users[0].target) in kinds:
            node = users[0]
    return node
