"""A network goes through torch's own tools: fx, func, export, hooks, copies, wrappers; and has timm's methods."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from igc_nas.errors import ConfigError
from igc_nas.nn.factory import create_model
from igc_nas.nn.network import Network, interleave
from tests.support.shares import some
from tests.support.tensors import relative_error

NAMES = ("igcv1-l8m2-d8", "igcv1-l8m2-d8-res", "igcv2-c64-k4-d8", "igcv3-d-cifar", "regconv-w16-d8")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of_stacked(network: Network) -> Tensor:
    """The outputs of one of two equal networks that run as one."""
    parameters, buffers = stack_module_state([network, network])  # type: ignore[list-item]
    base = copy.deepcopy(network).to("meta")
    return vmap(lambda p, b: functional_call(base, (p, b), (X,)))(parameters, buffers)[1]


@pytest.fixture(scope="module", params=some(NAMES, "igcv1-l8m2-d8-res", "igcv2-c64-k4-d8"))
def network(request: pytest.FixtureRequest) -> Network:
    return create_model(request.param, seed=0).eval()


SAME: dict[str, Callable[[Network], Tensor]] = {
    "fx": lambda network: torch.fx.symbolic_trace(network)(X),
    "vmap over stacked networks": of_stacked,
    "export": lambda network: torch.export.export(network, (X,)).module()(X),
    "deepcopy": lambda network: copy.deepcopy(network)(X),
    "pickle": lambda network: pickle.loads(pickle.dumps(network))(X),  # noqa: S301
    "trace": lambda network: torch.jit.trace(network, X)(X),
}


@pytest.mark.filterwarnings("ignore")  # of torch's tools about themselves
@pytest.mark.parametrize("tool", SAME)
def test_a_tool_of_torch_keeps_the_function(tool: str, network: Network) -> None:
    assert relative_error(SAME[tool](network), network(X)) < 1e-4


def on_each(register: str) -> Callable[[Network, Callable[..., None]], list[RemovableHandle]]:
    """Hooks of one kind on all modules of a network."""
    return lambda network, hook: [getattr(module, register)(hook) for module in network.modules()]


BACKWARD_HOOKS: dict[str, Callable[[Network, Callable[..., None]], list[RemovableHandle]]] = {
    "hooks": on_each("register_full_backward_hook"),
    "pre-hooks": on_each("register_full_backward_pre_hook"),
    "a global hook": lambda _, hook: [register_module_full_backward_hook(hook)],
    "a global pre-hook": lambda _, hook: [register_module_full_backward_pre_hook(hook)],
}


@pytest.mark.parametrize("kind", BACKWARD_HOOKS)
def test_backward_hooks_on_every_module(kind: str, network: Network) -> None:
    hooked, seen = copy.deepcopy(network).train(), []
    handles = BACKWARD_HOOKS[kind](hooked, lambda module, *_: seen.append(module))
    try:
        hooked(X.clone().requires_grad_()).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert set(seen) >= {module for module in hooked.modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("is_global", [False, True])
def test_a_forward_hook_keeps_what_its_module_puts_out(is_global: bool, network: Network) -> None:
    hooked, seen = copy.deepcopy(network), []
    norms = [module for module in hooked.modules() if isinstance(module, nn.BatchNorm2d)]

    def keep(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        if module in norms:
            seen.append((module, given[0], found))

    handles = (
        [register_module_forward_hook(keep)] if is_global else [norm.register_forward_hook(keep) for norm in norms]
    )
    try:
        logits = hooked(X)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(logits, network(X))
    assert len(seen) == len(norms)
    assert all(torch.equal(found, norm(given)) for norm, given, found in seen)


def test_gradients_of_each_image(network: Network) -> None:
    parameters = dict(network.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, parameters, (image[None],)).sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    assert {name: g.shape for name, g in found.items()} == {n: (2, *p.shape) for n, p in parameters.items()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_script_is_refused_with_what_works(network: Network) -> None:
    with pytest.raises(ConfigError, match=r"(?s)torch\.jit\.script.*torch\.export"):
        torch.jit.script(network)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
def test_an_interleave_is_the_papers_permutation_and_keeps_the_layout(groups: int, layout: torch.memory_format) -> None:
    x = torch.randn(2, 12, 5, 4).to(memory_format=layout)
    y = interleave(x, groups)
    order = [i * (12 // groups) + j for j in range(12 // groups) for i in range(groups)]
    assert torch.equal(y, x[:, order])
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_network(prefix: str, tmp_path: Path) -> None:
    own = create_model(NAMES[0], seed=1)
    save_file({prefix + name: tensor for name, tensor in own.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = create_model(NAMES[0], weights=tmp_path / "w.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in own.state_dict().items())


def test_weights_of_other_classes_leave_the_new_classifier(tmp_path: Path) -> None:
    own = create_model(NAMES[0], seed=1)
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    new = create_model(NAMES[0], num_classes=100, weights=tmp_path / "w.safetensors", seed=2)
    assert new.eval()(X).shape == (2, 100)
    assert torch.equal(new.forward_features(X), own.eval().forward_features(X))
    with pytest.raises(ConfigError, match="another architecture"):
        create_model("igcv1-l8m2-d20", num_classes=100, weights=tmp_path / "w.safetensors")


# timm's methods.


def test_feature_maps_of_a_network(network: Network) -> None:
    last, maps = network.forward_intermediates(X)
    assert torch.equal(last, network.forward_features(X))
    assert [m.shape[1] for m in maps] == network.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == network.feature_info.reduction()
    (only,) = network.forward_intermediates(X, [-2], stop_early=True, intermediates_only=True)
    assert torch.equal(only, maps[-2])
    last_two = network.forward_intermediates(X, 2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[-2:], strict=True))
    with pytest.raises(ConfigError, match="the network has"):
        network.forward_intermediates(X, [99])


def test_a_backbone_returns_feature_maps() -> None:
    network = create_model("igcv3-d-cifar", seed=0).eval()
    backbone = create_model("igcv3-d-cifar", seed=0, features_only=True, out_indices=(0, 2)).eval()
    maps = backbone(X)
    assert [m.shape[1] for m in maps] == backbone.feature_info.channels()
    wanted = network.forward_intermediates(X, (0, 2), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))


def test_a_classifier_is_reset_as_timm_does() -> None:
    network = create_model("igcv3-d-cifar", seed=0).eval()
    features = network.forward_features(X)
    network.reset_classifier(0, "")
    unpooled = create_model("igcv3-d-cifar", num_classes=0, global_pool="", seed=0).eval()
    assert torch.equal(network(X), features)
    assert torch.equal(unpooled(X), features)
    assert network.num_classes == 0
    network.reset_classifier(7, global_pool="avg")
    assert network(X).shape == (2, 7)
    network.reset_classifier(0)
    assert torch.equal(network(X), features.mean((2, 3)))
    for wrong in ((5, ""), (5, "max")):
        with pytest.raises(ConfigError, match="global_pool"):
            network.reset_classifier(*wrong)
