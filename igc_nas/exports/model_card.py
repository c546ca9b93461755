"""The model card of an exported folder: its files, every number with its conditions, and how to use it. No torch."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from igc_nas._version import __version__
from igc_nas.analysis.words import (
    conditions_words,
    form_words,
    front_end_words,
    interval_words,
    noise_words,
    recipe_words,
)
from igc_nas.arch.cost import reads_square_colour
from igc_nas.data.datasets import is_synthetic
from igc_nas.exports.destination import C_COMMAND, C_SOURCE
from igc_nas.exports.source import Source, unfinished_text
from igc_nas.io.text import printable
from igc_nas.study.front_table import legend
from igc_nas.study.names import dataset_option
from igc_nas.study.records import Candidate


@dataclass(frozen=True)
class OnnxSummary:
    """model.onnx in the card: its form, that form's parameters and MACs, its time on this machine, its opset."""

    form: str
    params: int
    macs: int
    timing: str | None
    opset: int | None


@dataclass(frozen=True)
class Contents:
    """The folder's other files: size in bytes by name, and relative error against the network by name.

    `trained`: the folder has weights. `no_onnx` is the reason why `onnx` is None, `no_c` that why there is no model.c.
    """

    sizes: Mapping[str, int]
    errors: Mapping[str, float]
    trained: bool
    onnx: OnnxSummary | None = None
    no_onnx: str = ""
    no_c: str = ""


MOST_CLASSES = 100
"""The number of classes that the card names."""

_DESCRIPTIONS = {
    "config.toml": "the architecture; `igc-nas show`, `cost`, `measure`, `train` and `igc_nas.create_model` read it",
    "config.json": "the same for programs, with the classes and how images are prepared",
    "model.py": "the network as one PyTorch file that does not import igc-nas",
    "model.safetensors": "its weights, for `model.py` and `igc_nas.create_model`",
    "model.onnx": "the network with its weights for inference, batches of any size",
    "model.c": "the factored network with its weights as C11 without malloc, one image a call",
    "model.h": "its interface: `model_workspace_bytes`, `model_run`",
    "model_main.c": "a program that reads an image from a file and prints the logits",
}


def card_text(source: Source, contents: Contents) -> str:
    """README.md of an exported folder."""
    channels, height, width = source.arch.input
    parts = [
        _front_matter(source, contents),
        f"# Network {source.id}",
        f"An image classifier{source.what}: {channels} x {height} x {width} pixels to "
        f"{source.arch.classes} classes. Written by igc-nas {__version__} from {_md(source.name)}.",
        *_warnings(source, contents),
        f"```\n{source.arch}\n```",
        _md(legend([source.arch])),
        "## Numbers",
        _table(("", "", "conditions"), _numbers(source, contents)),
        "## Files",
        _table(
            ("file", "bytes", ""), ((f"`{n}`", f"{size:,}", _DESCRIPTIONS[n]) for n, size in contents.sizes.items())
        ),
        *([f"There is no `model.onnx`: {_md(contents.no_onnx)}."] if contents.no_onnx else []),
        *([f"There is no `model.c`: {_md(contents.no_c)}."] if contents.no_c else []),
        "Each file was read back and its outputs compared with the network's on random images: "
        + "; ".join(f"`{name}` {_error(error)}" for name, error in contents.errors.items())
        + ".",
        "## Use",
        *_use(source, contents),
        "Parameters are the weights and biases of convolutions and linear layers, normalisation's gamma and beta; MACs "
        "are multiply-adds of convolutions and linear layers for one image. The code in this folder is under "
        "igc-nas's licence, MIT; for data and weights see the licence of the training data.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(source: Source, contents: Contents) -> str:
    """The metadata that the Hugging Face hub reads; every value is of our own words."""
    dataset = next((name for name in ("cifar100", "cifar10") if source.dataset.partition(" ")[0] == name), None)
    lines = [
        "license: mit",
        "library_name: igc-nas",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("image-classification", "neural-architecture-search", "pytorch")),
        *(["datasets:", f"- {dataset}"] if dataset and contents.trained else []),
        *(["metrics:", "- accuracy"] if source.trained else []),
    ]
    return "\n".join(["---", *lines, "---"])


def _warnings(source: Source, contents: Contents) -> Iterator[str]:
    if not contents.trained:
        yield "**UNTRAINED: the weights are random; predictions are meaningless.**"
    dataset = source.dataset
    if dataset and is_synthetic(dataset):
        yield "**The errors were measured on synthetic images that igc-nas draws; they say nothing about photographs.**"
    if (unfinished := unfinished_text(source)) is not None:
        yield f"**{_md(unfinished[0].upper() + unfinished[1:])}.**"
    if source.study and (end := front_end_words(source.study)):
        yield f"Of the study {_md(source.study.spec.name)}: {_md(end)}"


def _numbers(source: Source, contents: Contents) -> Iterator[tuple[str, str, str]]:
    cost, measured = source.cost, source.measured
    image = " x ".join(map(str, source.arch.input))
    yield "parameters", f"{cost.params:,}", "of the factored network; exact"
    yield "MACs", f"{cost.macs:,}", f"of the factored network, for one image of {image}; exact"
    yield "activations", f"{cost.activations:,}", "output elements of convolutions and linear layers; exact"
    if source.trained:
        yield "test error", f"{100 * source.trained.test_error:.2f} %", _md(str(source.trained).partition(" % ")[2])
    elif contents.trained:
        yield "test error", "not known", "the weights came without a result.json"
    if isinstance(measured, Candidate) and source.study:
        score = measured.score
        yield (
            "held-out error",
            f"{100 * score.error:.2f} %",
            _md(
                f"of the search, not of these weights: on {score.held_out:,} held-out images of {score.dataset} after "
                f"a proxy training of {recipe_words(source.study.spec.recipe)}"
            ),
        )
    if measured is not None:
        latency = measured.latency
        low, high = latency.normalised_interval_ms
        noisy = f"; {noise_words(latency.noise)}" if latency.noisy else ""
        yield (
            "latency, normalised",
            f"{latency.normalised_ms:.3f} ms",
            _md(
                f"of the search, by a reference network (raw: {latency.median_ms:.3f} ms): "
                f"{interval_words(low, high, latency.n)}, "
                f"form {form_words(measured, whole=True)}, "
                f"{conditions_words(latency)}{noisy}"
            ),
        )
    if onnx := contents.onnx:
        opset = f", opset {onnx.opset}" if onnx.opset else ""
        yield "`model.onnx`: form", onnx.form, f"which linear chains are multiplied out; float32{opset}"
        yield "`model.onnx`: parameters", f"{onnx.params:,}", "of that form"
        yield "`model.onnx`: MACs", f"{onnx.macs:,}", "of that form, for one image"
        if onnx.timing:
            value, _, conditions = onnx.timing.partition(" (")
            yield "`model.onnx`: time", value, _md(conditions.replace(")", ",", 1))


def _use(source: Source, contents: Contents) -> Iterator[str]:
    dataset, statistics = source.dataset, source.statistics
    if statistics is not None:
        mean, std = (f"({', '.join(f'{value:g}' for value in values)})" for values in statistics)
        yield (
            "Inputs are images with values from 0 to 1, normalised per channel with the mean "
            f"{mean} and the standard deviation {std} of {_md(dataset.partition(' ')[0])}."
        )
    else:
        yield "Inputs are images normalised per channel with the mean and standard deviation of the training set."
    if source.images:
        names = source.images.classes
        more = f", ... ({len(names):,} in all; `model.py` has them)" if len(names) > MOST_CLASSES else ""
        listed = ", ".join(_md(name) for name in names[:MOST_CLASSES])
        yield f"Classes, in the order of the outputs: {listed}{more}."
    image = ", ".join(map(str, source.arch.input))
    weights = 'model = load_weights(Network(), "model.safetensors").eval()'
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
    if C_SOURCE in contents.sizes:
        floats = prod(source.arch.input)
        yield (
            f"`image` is a file of {floats:,} float32 values, channel by channel, row by row:\n\n"
            f"```sh\n{C_COMMAND.format(name='model')}\n./model image\n```"
        )
    yield (
        "```python\nimport igc_nas\n\n"
        'model = igc_nas.create_model(".")  # this folder; model.pretrained_cfg says how images are prepared\n```'
    )
    if not contents.trained and reads_square_colour(source.arch):
        option = dataset_option(source.study.spec.dataset) if source.study else ""
        yield (
            f"`igc-nas train config.toml{option}` trains it; `igc-nas export config.toml --weights models/... "
            "--format dir` then writes this folder with its weights."
        )
    elif not contents.trained:
        yield (
            "`igc-nas export config.toml --weights FILE --format dir` writes this folder with weights; `igc-nas train` "
            "trains on square images of 3 channels only."
        )


def _error(error: float) -> str:
    return "equal" if error == 0 else f"relative error {error:.1e}"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _md(text: str) -> str:
    """Text from a file, escaped for Markdown and put on one line."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(printable(text, lines=False), quote=False))
