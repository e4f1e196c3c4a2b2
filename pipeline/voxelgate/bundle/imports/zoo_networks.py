"""The network of a zoo bundle: one of MONAI's, built with arguments that MONAI's present version takes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import monai
import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.zoo_components import SCRIPTS, Component, component, plain
from voxelgate.bundle.imports.zoo_scripts import Scripts
from voxelgate.bundle.workflow import build_component
from voxelgate.core.errors import BundleError, InputError, reason_of

GONE: Mapping[str, frozenset[str]] = {
    "SwinUNETR": frozenset({"img_size"}),  # MONAI 1.5: any size that fits its halvings
}
"""Arguments that networks took once, which change neither weights nor results."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "UNETR": {"pos_embed": "proj_type"},  # MONAI 1.4
    "ViT": {"pos_embed": "proj_type"},
}

MOST_CALLS, MOST_CALLS_A_WEIGHT = 10_000, 200
"""Of functions of PyTorch while a network is built without memory; MONAI's take some ten a weight."""

_SPACES = frozenset({"TopologyInstance"})
"""What `DiNTS` is given as its space."""


def network_of(stated: Any, where: str, scripts: Scripts) -> tuple[Config, int, tuple[str, ...]]:
    """Return the config of a network, the channels that it gives, and sentences on what was changed.

    Args:
        stated: `network_def`, worked out.
        where: the file and the id, for messages.
        scripts: the bundle's own files.

    Raises:
        BundleError: it is no network that is known here, or its arguments are none.
    """
    network = component(stated, where)
    is_own = network.name.startswith(SCRIPTS)
    config, findings = (_of_scripts(network, where, scripts), ()) if is_own else _of_monai(network, where)
    return config, _classes(network, where), findings


class _SmallNumbers(TorchFunctionMode):
    """Keep on the CPU the numbers that networks count with while they are built, and end what builds on and on.

    Args:
        weights: how many the file has; each takes a few calls of PyTorch.
    """

    def __init__(self, weights: int) -> None:
        super().__init__()
        self._left = MOST_CALLS + MOST_CALLS_A_WEIGHT * weights

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, those that count on the CPU."""
        del types
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has far more layers than the file has weights")
        where = {"device": "cpu"} if func in {torch.linspace, torch.arange} else {}
        return func(*args, **{**(kwargs or {}), **where})


def _gradients_as_they_are() -> torch.set_grad_enabled:
    """Return what leaves gradients as they were: layers switch them off while they begin, and may be ended in that."""
    return torch.set_grad_enabled(torch.is_grad_enabled())


def refuse_other_network(network: Config, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights of another network than the config's, which is built without memory for its weights.

    Args:
        network: config of it.
        state: weights by name.
        where: file of the weights, for messages.

    Raises:
        BundleError: the network cannot be built.
        InputError: names or shapes differ.
    """
    try:
        with _gradients_as_they_are(), torch.device("meta"), _SmallNumbers(len(state)):
            wanted = {name: tuple(value.shape) for name, value in build_component(network).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ImportError, ArithmeticError) as error:
        raise BundleError(
            f"{network['_target_']} of the bundle cannot be built with MONAI {monai.__version__} ({reason_of(error)})"
        ) from error
    found = {name: tuple(value.shape) for name, value in state.items()}
    if unlike := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        first = unlike[0]
        shapes = f"{found.get(first, 'absent')} instead of {wanted.get(first, 'absent')}"
        raise InputError(
            f"{where}: {len(unlike)} of {len(wanted)} weights are not those of the network {network['_target_']}, such "
            f"as {first!a}, {shapes}; choose its own weights."
        )


def _of_scripts(network: Component, where: str, scripts: Scripts) -> Config:
    return replace(network, name=scripts.own_target(network.name, where)).config()


def _of_monai(network: Component, where: str) -> tuple[Config, tuple[str, ...]]:
    kind = getattr(nets, network.name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise BundleError(f"{where}: {network.name} is no network of MONAI {monai.__version__}, and no other is built")
    gone = sorted(GONE.get(network.name, frozenset()) & set(network.arguments))
    if "pretrained" in inspect.signature(kind).parameters:
        network = replace(network, arguments={**network.arguments, "pretrained": False})  # or MONAI would download
    renamed = RENAMED.get(network.name, {})
    arguments = {renamed.get(name, name): value for name, value in network.arguments.items() if name not in gone}
    if "dints_space" in arguments:
        arguments |= _searched(arguments, where)
        config = {"_target_": f"monai.networks.nets.{network.name}", **arguments}
    else:
        config = replace(network, name=f"monai.networks.nets.{network.name}", arguments=arguments).config()
    told = f"MONAI {monai.__version__} no longer takes {', '.join(gone)} of {network.name}; left out."
    return config, ((told,) if gone else ())


def _searched(arguments: Mapping[str, Any], where: str) -> Config:
    """Return all arguments of a `DiNTS`, whose space and code come as numbers."""
    space = component(arguments["dints_space"], f"{where}#dints_space")
    if space.name not in _SPACES:
        raise BundleError(f"{where}: {space.name} is no space of DiNTS that is known here")
    code = space.arguments.get("arch_code")
    if not isinstance(code, list) or len(code) != 2:
        raise BundleError(f"{where}: the space of DiNTS has no arch_code of two arrays; restore the bundle")
    others = {name: plain(value) for name, value in space.arguments.items() if name not in {"arch_code", "device"}}
    rest = {name: plain(value) for name, value in arguments.items() if name not in {"dints_space", "node_a"}}
    return {
        **rest,
        "dints_space": {
            "_target_": f"monai.networks.nets.{space.name}",
            **others,
            "arch_code": [{"_target_": "numpy.array", "object": plain(one)} for one in code],
            "device": "cpu",
        },
        "node_a": {"_target_": "torch.tensor", "data": plain(arguments.get("node_a"))},
    }


def _classes(network: Component, where: str) -> int:
    """Return how many channels a network gives, by the names that MONAI's networks have for it."""
    told = [
        network.arguments[name] for name in ("out_channels", "num_classes", "n_classes") if name in network.arguments
    ]
    if len(told) != 1 or not isinstance(told[0], int) or told[0] < 1:
        raise BundleError(f"{where}: {network.name} does not say how many channels it gives (out_channels); add it")
    return told[0]
