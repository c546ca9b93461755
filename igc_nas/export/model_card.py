"""The model card: what is in an exported folder, every number with its conditions, how to use it. No torch here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from igc_nas._version import __version__
from igc_nas.data.datasets import is_synthetic, normalisation
from igc_nas.export.source import Source, conditions_text, recipe_text, unfinished_text
from igc_nas.io.text import printable
from igc_nas.study.records import Candidate, deployed_text


@dataclass(frozen=True)
class Deployed:
    """What the card says of model.onnx: its form, what that holds and executes, its time here, its opset."""

    form: str
    params: int
    macs: int
    timing: str | None
    opset: int | None


@dataclass(frozen=True)
class Contents:
    """What is in the folder beside the card: sizes in bytes, how far each file was from the network, in order."""

    sizes: Mapping[str, int]
    errors: Mapping[str, float]
    trained: bool
    onnx: Deployed | None = None
    no_onnx: str = ""
    """Why there is no model.onnx."""


_ABOUT = {
    "config.toml": "the architecture; `igc-nas show`, `cost`, `measure`, `train` and `igc_nas.create_model` read it",
    "model.py": "the network as one PyTorch file that needs nothing of igc-nas",
    "weights.safetensors": "its weights, for `model.py` and `igc_nas.create_model`",
    "model.onnx": "the network with its weights for inference, batches of any size",
}


def card_text(source: Source, contents: Contents) -> str:
    """README.md of an exported folder."""
    channels, height, width = source.arch.input
    parts = [
        f"# Network {source.id}",
        f"An image classifier of interleaved group convolutions: {channels} x {height} x {width} pixels to "
        f"{source.arch.classes} classes. Written by igc-nas {__version__} from {_md(source.name)}.",
        *_warnings(source, contents),
        f"```\n{source.arch}\n```",
        "## Numbers",
        _table(("", "", "of what, under which conditions"), _numbers(source, contents)),
        "## Files",
        _table(("file", "bytes", ""), ((f"`{n}`", f"{size:,}", _ABOUT[n]) for n, size in contents.sizes.items())),
        *([f"There is no `model.onnx`: {_md(contents.no_onnx)}."] if contents.no_onnx else []),
        "Each was read back and compared with the network that it was written from, on random images: "
        + "; ".join(f"`{name}` {_error(error)}" for name, error in contents.errors.items())
        + ".",
        "## Use",
        *_use(source, contents),
        "Parameters are convolution weights, normalisation's gamma and beta, the classifier's weight and bias; MACs "
        "are multiply-adds of convolutions and the classifier for one image. The code in this folder is under "
        "igc-nas's licence, MIT; data and weights are under what you have trained on.",
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(source: Source, contents: Contents) -> Iterator[str]:
    if not contents.trained:
        held = " `model.onnx` holds random weights." if contents.onnx else ""
        yield f"**UNTRAINED: nobody has trained this network's weights.{held} It classifies nothing yet.**"
    about = _dataset(source)
    if about and is_synthetic(about):
        yield "**Its errors are on synthetic images that igc-nas draws itself, and say nothing about photographs.**"
    if (unfinished := unfinished_text(source)) is not None:
        yield f"**{_md(unfinished[0].upper() + unfinished[1:])}.**"


def _numbers(source: Source, contents: Contents) -> Iterator[tuple[str, str, str]]:
    cost, measured = source.cost, source.measured
    image = " x ".join(map(str, source.arch.input))
    yield "parameters", f"{cost.params:,}", "as the network is written; exact"
    yield "MACs", f"{cost.macs:,}", f"for one image of {image}; exact"
    yield "activations", f"{cost.activations:,}", "elements that convolutions and the classifier write; exact"
    if source.trained:
        yield "test error", f"{100 * source.trained.test_error:.2f} %", _md(str(source.trained).partition(" % ")[2])
    elif contents.trained:
        yield "test error", "not known", "no result of a training stood beside the weights"
    if isinstance(measured, Candidate) and source.study:
        score = measured.score
        yield (
            "held-out error",
            f"{100 * score.error:.2f} %",
            _md(
                f"of the search, not of these weights: on {score.held_out:,} held-out images of {score.dataset} after "
                f"a proxy training of {recipe_text(source.study.spec.recipe)}"
            ),
        )
    if measured is not None:
        latency = measured.latency
        low, high = latency.normalised_interval_ms
        noisy = f"; NOISY: {'; '.join(latency.noise) or 'no reason kept'}" if latency.noisy else ""
        yield (
            "latency",
            f"{latency.normalised_ms:.3f} ms",
            _md(
                f"of the search: 95 % interval {low:.3f} to {high:.3f}, n = {latency.n}, "
                f"form {deployed_text(measured)} (parameters, MACs, weights as deployed), "
                f"{conditions_text(latency)}{noisy}"
            ),
        )
    if onnx := contents.onnx:
        opset = f", opset {onnx.opset}" if onnx.opset else ""
        yield "`model.onnx`: form", onnx.form, f"chains multiplied out or not; float32{opset}"
        yield "`model.onnx`: parameters", f"{onnx.params:,}", "as that form holds them"
        yield "`model.onnx`: MACs", f"{onnx.macs:,}", "as that form executes them"
        if onnx.timing:
            value, _, conditions = onnx.timing.partition(" (")
            yield "`model.onnx`: time", value, _md(conditions.replace(")", ",", 1))


def _use(source: Source, contents: Contents) -> Iterator[str]:
    about = _dataset(source)
    known = normalisation(about) if about else None
    if known is not None:
        yield (
            f"Images are floats from 0 to 1, less the mean {_numbers_text(known[0])}, over the standard deviation "
            f"{_numbers_text(known[1])} per channel, as for {_md(about.partition(' ')[0])}."
        )
    else:
        yield "Images are floats, normalised per channel as for the training."
    image = ", ".join(map(str, source.arch.input))
    weights = 'model = load_weights(Network(), "weights.safetensors").eval()'
    yield (
        "```python\nimport torch\nfrom model import Network, load_weights\n\n"
        + (weights if contents.trained else "model = Network()")
        + f"\nlogits = model(torch.randn(2, {image}))\n```"
    )
    if contents.onnx:
        yield (
            "```python\nimport numpy, onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f'logits = session.run(None, {{"image": numpy.zeros((2, {image}), numpy.float32)}})[0]\n```'
        )
    more = ', weights="weights.safetensors"' if contents.trained else ""
    yield f'```python\nimport igc_nas\n\nmodel = igc_nas.create_model("config.toml"{more})\n```'
    if not contents.trained:
        yield (
            "`igc-nas train config.toml` trains it; `igc-nas export config.toml --weights models/... --format dir` "
            "then writes this folder with its weights."
        )


def _dataset(source: Source) -> str:
    """The label of the dataset that the weights, or else the study's errors, are of."""
    if source.trained:
        return source.trained.dataset
    return source.study.spec.dataset if source.study else ""


def _error(error: float) -> str:
    return "equal" if error == 0 else f"relative error {error:.1e}"


def _numbers_text(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _md(text: str) -> str:
    """Text from a file for Markdown: one line, nothing in it is mark-up."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(printable(text, lines=False), quote=False))
