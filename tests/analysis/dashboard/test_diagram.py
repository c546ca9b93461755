"""The page's script reads every kind of layer: sizes, words and drawings of networks of the literature, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from igc_nas.analysis import dashboard
from igc_nas.analysis.dashboard.payload import Plans
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.named import network
from igc_nas.arch.plan import plan
from igc_nas.arch.shapes import layers_shape

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")
FOLDER = Path(dashboard.__file__).parent
NAMES = (
    "igcv3-d-cifar", "igcv1-l24m2-d8", "resnet20-a", "se-preresnet164", "wrn-16-2-bsconv-s", "densenet-bc-100-12",
    "condensenet-86", "mobilenetv3-small", "dpn92", "dualpathnet28-10", "shufflenetv1-g3-wei", "shufflenetv2-x0.5",
    "xception", "mobilefacenet-112", "alexnet-groups-imagenet",
)  # fmt: skip
SCRIPT = """
const COLOURS = ["red"];
const made = [];
const svg = (tag, attributes, ...inner) => { made.push([tag, attributes, inner]); return inner.flat().join(" "); };
const clicks = [];
const el = (tag, attributes, ...inner) => {
  if (attributes.onclick) clicks.push(attributes.onclick);
  const text = inner.flat(9).filter(part => ["string", "object"].includes(typeof part)).join("");
  return Object.assign(new String(text), {replaceChildren() {}});
};
const {plans, archs} = JSON.parse(require("fs").readFileSync(0, "utf-8"));
SOURCES
const found = archs.map(arch => {
  made.length = 0;
  const facts = diagram(arch);
  for (const click of clicks.splice(0)) click();  // the other block of each stage
  const values = made.flatMap(([, attributes]) => Object.values(attributes));
  const finite = values.filter(value => typeof value === "number").every(Number.isFinite);
  return {text: archText(arch), facts: String(facts), finite, labels: values.filter(value => /batch norm/.test(value))};
});
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[str, Any]]:
    plans, archs = Plans(), {name: network(name).arch for name in NAMES}
    numbers = [plans.of(arch) for arch in archs.values()]
    data = {name: getattr(plans, name).values for name in ("stages", "layers", "blocks")}
    sources = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("data.js", "diagram.js"))
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", SCRIPT.replace("SOURCES", sources[sources.index("// The architecture as text") :])],
        input=json.dumps({"plans": data, "archs": numbers}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, json.loads(done.stdout), strict=True))


def sizes(arch: ArchConfig) -> list[tuple[int, int]]:
    """(channels, side) behind the stem and each stage."""
    found, shape = [], tuple(arch.input)
    blocks = plan(arch).blocks
    for at, block in enumerate(blocks):
        shape = layers_shape(block.layers, shape)
        stage = block.name.partition(".")[0]
        if stage in ("head", "classifier"):
            break
        if blocks[at + 1].name.partition(".")[0] != stage:
            found.append((shape[0], shape[1]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_diagram_states_the_sizes_of_the_plan(name: str, drawn: dict[str, dict[str, Any]]) -> None:
    arch = network(name).arch
    assert drawn[name]["text"] == str(arch)
    for channels, side in sizes(arch):
        assert f"{channels} channels, {side}×{side}" in drawn[name]["facts"]
    assert drawn[name]["finite"]
    assert not any("undefined" in words or "NaN" in words for words in (*drawn[name]["labels"], drawn[name]["facts"]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("densenet-bc-100-12", "appended to the input"),
        ("shufflenetv2-x0.5", "the first 24 channels pass, concatenated"),
        ("dpn92", "256 channels summed, others appended; shortcut 1×1 64→272"),
        ("resnet20-a", "pixel 2 by 2, 16 zero channels"),
        ("mobilenetv3-small", "squeeze-excite 16→4→16"),
        ("condensenet-86", "of 16 channels by index"),
        ("mobilefacenet-112", "PReLU"),
        ("xception", "max-pool 3×3, stride 2"),
    ],
)
def test_a_diagram_names_each_kind(name: str, words: str, drawn: dict[str, dict[str, Any]]) -> None:
    assert any(words in label for label in drawn[name]["labels"])
