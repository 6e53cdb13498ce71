"""
A training step of code that others published, run from a checkout: the I²MoE code (github.com/Raina-Xin/I2MoE) and
FL-I²MoE's authors' newer code (github.com/dut0817/FL-I2MoE_Decor). Neither comes with this repository.

Both call their package `src`, import FastMoE and torchvision, which a Transformer of theirs never uses, and set
CUDA_LAUNCH_BLOCKING, which makes every kernel wait; it is taken back, so that they run as fast as they can.
"""

import argparse
import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_i2moe.training.command_line import given_path

FASTMOE_PARTS = ("transformer", "layers", "functions", "gates")
ABSENT = ("torchvision", "tree", "fmoe_cuda", "fmoe", *(f"fmoe.{part}" for part in FASTMOE_PARTS))
MIXTURE, TRANSFORMER, REGULARIZERS = (
    f"src/{name}.py" for name in ("imoe/InteractionMoE", "common/fusion_models/transformer", "imoe/regularizers")
)


@dataclass(frozen=True)
class OtherCode:
    """A checkout of one of the two."""

    folder: Path
    is_authors: bool

    def mixture(self, lengths: list[int], hidden_size: int, num_labels: int, dropout: float) -> nn.Module:
        """With the published hyper-parameters of MM-IMDb, in training mode; see [`call`]."""
        with _importing(self.folder):
            interaction_moe, transformer = (
                importlib.import_module(file.removesuffix(".py").replace("/", ".")) for file in (MIXTURE, TRANSFORMER)
            )
            fusion = transformer.Transformer(
                num_modalities=len(lengths),
                num_patches=1,
                hidden_dim=hidden_size,
                output_dim=num_labels,
                num_layers=2,
                num_layers_pred=1,
                num_experts=1,
                num_routers=1,
                top_k=1,
                num_heads=4,
                dropout=dropout,
            )
            if not self.is_authors:  # whose positions are computed
                fusion.pos_embed = nn.Parameter(torch.zeros(1, sum(lengths), hidden_size))
            return interaction_moe.InteractionMoE(
                num_modalities=len(lengths),
                fusion_model=fusion,
                fusion_sparse=False,
                hidden_dim=hidden_size,
                hidden_dim_rw=256,
                num_layer_rw=2 if self.is_authors else 3,
                temperature_rw=2,
            )

    def call(self, mixture: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Projected sequences [(B, T_m, H), …] → the mixture's logits (B, C), the experts' interaction losses."""
        if self.is_authors:
            _, _, logits, losses, _ = mixture(inputs, [x.new_ones(x.shape[:2]) for x in inputs])
        else:
            _, _, logits, losses = mixture(inputs)
        return logits, losses


@contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """The checkout's modules can be imported, and are forgotten afterwards: the other one's have the same names."""
    launch_blocking, path, to_gpu = os.environ.get("CUDA_LAUNCH_BLOCKING"), list(sys.path), nn.Module.cuda
    stubs = {name: _Absent(name) for name in ABSENT if name not in sys.modules}
    sys.path.insert(0, str(folder))
    sys.modules.update(stubs)
    if not torch.cuda.is_available():
        nn.Module.cuda = lambda self, device=None: self  # its layers move themselves to a GPU
    try:
        yield
    finally:
        sys.path[:], nn.Module.cuda = path, to_gpu
        for name in [x for x in sys.modules if x in stubs or x.partition(".")[0] == "src"]:
            del sys.modules[name]
        os.environ.pop("CUDA_LAUNCH_BLOCKING", None)
        if launch_blocking is not None:
            os.environ["CUDA_LAUNCH_BLOCKING"] = launch_blocking


class _Absent(types.ModuleType):
    """Stands for a package that the published code imports and a Transformer of it never uses."""

    def __getattr__(self, name: str) -> type:
        return type(name, (nn.Module,), {})


def published_code(text: str) -> OtherCode:
    """A checkout of the published I²MoE code, as argparse's `type`."""
    return _checkout(text, is_authors=False)


def authors_code(text: str) -> OtherCode:
    """A checkout of the authors' newer code, as argparse's `type`."""
    return _checkout(text, is_authors=True)


def _checkout(text: str, is_authors: bool) -> OtherCode:
    folder = given_path(text).resolve()
    what = "the authors' newer code (FL-I2MoE_Decor)" if is_authors else "the published I²MoE code (I2MoE)"
    for file in (MIXTURE, TRANSFORMER):
        if not (folder / file).is_file():
            raise argparse.ArgumentTypeError(f"{folder} is no checkout of {what}: it has no {file}")
    if (folder / REGULARIZERS).is_file() != is_authors:
        raise argparse.ArgumentTypeError(
            f"{folder} is no checkout of {what} but of the other one: it has {'no ' * is_authors}{REGULARIZERS}"
        )
    return OtherCode(folder, is_authors)
