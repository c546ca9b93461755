"""An architecture as C for a device: `NAME.c`, `NAME.h`, a program that reads an image, and where it is asked for
`NAME.bin`. No malloc, no library beyond string.h, no state: the caller gives the workspace.

What is written is compiled, with and without sanitizers, and run; its logits are compared with the network's in
float64.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.exports.destination import C_COMMAND
from igc_nas.exports.source import Source, facts
from igc_nas.io.files import write_together
from igc_nas.io.processes import finished
from igc_nas.nn.c_compiler import CompilerError, compiler
from igc_nas.nn.codegen import emit
from igc_nas.nn.codegen.target import PORTABLE, Target, generated
from igc_nas.nn.network import Network

FLAGS = ("-std=c11", "-ffp-contract=fast", "-Wall", "-Wextra")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
MOST_ERROR = 1e-5
"""Norm-wise, of the logits, against float64; or four times torch's own error in float32 where that is larger."""
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class CFiles:
    """Texts by file name; `weights` are those of NAME.bin, where they are not in NAME.c."""

    name: str
    texts: dict[str, str]
    weights: NDArray[np.float32] | None
    image: tuple[int, int, int]

    def write(self, folder: Path) -> None:
        """Write all files or, on a full disk, none: weights of another network would be read without a word."""
        weights = {} if self.weights is None else {f"{self.name}.bin": self.weights.tobytes()}
        write_together({folder / name: content for name, content in (self.texts | weights).items()})


def c_files(
    name: str, source: Source, network: Network, *, weights_file: bool = False, target: Target = PORTABLE
) -> CFiles:
    """The files of a network in evaluation mode.

    Raises `ConfigError` where `name` is no C identifier, `IgcNasError` where weights are not finite.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", name, re.ASCII):
        raise ConfigError(f"{name!r:.80} cannot be the name of a C function", "use letters, digits and _: -o mynet.c")
    with np.errstate(over="ignore"):
        made = generated(network, target)
    if not np.isfinite(made.weights).all():
        raise IgcNasError("with batch norm folded in, weights are not finite in float32: the network is unusable")
    texts = {
        f"{name}.h": _header(name, made, weights_file),
        f"{name}.c": _body(name, source, made, target, weights_file),
        f"{name}_main.c": _main(name, made, weights_file),
    }
    return CFiles(name, texts, made.weights if weights_file else None, made.image)


def _arguments(weights_file: bool) -> str:
    given = "const float *weights, " if weights_file else ""
    return f"const float *image, float *logits, {given}void *workspace"


def _header(name: str, made: emit.Source, weights_file: bool) -> str:
    upper, (channels, height, width) = name.upper(), made.image
    weights = f"#define {upper}_WEIGHTS {len(made.weights)} /* floats of {name}.bin */\n" if weights_file else ""
    also = f"`weights`: the contents of {name}.bin, at an address that 64 divides.\n   " if weights_file else ""
    return f"""\
#ifndef {upper}_H
#define {upper}_H

#include <stddef.h>

#define {upper}_CHANNELS {channels}
#define {upper}_HEIGHT {height}
#define {upper}_WIDTH {width}
#define {upper}_CLASSES {made.classes}
{weights}
/* Bytes that `{name}_run` needs to work in. */
size_t {name}_workspace_bytes(void);

/* One image, float [{channels}][{height}][{width}], normalised as in training -> logits, float [{made.classes}].
   {also}Reentrant: calls with different workspaces may run at one time. */
void {name}_run({_arguments(weights_file)});

#endif
"""


def _body(name: str, source: Source, made: emit.Source, target: Target, weights_file: bool) -> str:
    comment = (
        "\n".join(f"   {line}".rstrip() for line in facts(source))
        .replace("*/", "* /")
        .replace("/*", "/ *")
        .replace("??", "? ?")
    )
    kept = "" if weights_file else f"\n{_weights_text(made.weights)}\n"
    return f"""\
/* {name}: an image classifier{source.what}.

{comment}

   Compile: {C_COMMAND.format(name=name)}
   (-march=native is for the processor that compiles; name another by -march= or -mcpu=)

   Vectors of {target.lanes} floats; sums in tiles for {target.registers} vector registers. Correct on any processor. */

#include "{name}.h"

{made.text}{kept}
size_t {name}_workspace_bytes(void)
{{
    return {4 * made.arena + 64};
}}

void {name}_run({_arguments(weights_file)})
{{
    char *start = workspace;
    start += (64 - (size_t)start % 64) % 64;
    forward(image, logits, weights, (float *)start);
}}
"""


def _weights_text(weights: NDArray[np.float32]) -> str:
    """The weights as hexadecimal floats, which are exact."""
    texts = [re.sub(r"\.?0*p", "p", float(value).hex()) + "f" for value in weights]
    lines = [", ".join(texts[at : at + 6]) for at in range(0, len(texts), 6)]
    body = ",\n    ".join(lines)
    return f"static const float weights[{len(weights)}] __attribute__((aligned(64))) = {{\n    {body}\n}};"


def _main(name: str, made: emit.Source, weights_file: bool) -> str:
    upper = name.upper()
    channels, height, width = made.image
    floats = channels * height * width
    read = f"""
    static float weights[{upper}_WEIGHTS] __attribute__((aligned(64)));
    FILE *bin = fopen("{name}.bin", "rb");
    if (!bin || fread(weights, sizeof(float), {upper}_WEIGHTS, bin) != {upper}_WEIGHTS)
        return fprintf(stderr, "{name}.bin cannot be read\\n"), 1;
    fclose(bin);"""
    return f"""\
/* Reads an image, {floats} floats in the order [channel][row][column], from a file; prints a logit a line. */

#include <stdio.h>
#include <stdlib.h>

#include "{name}.h"

int main(int count, char **words)
{{
    static float image[{floats}], logits[{upper}_CLASSES];
    FILE *file = count == 2 ? fopen(words[1], "rb") : NULL;
    if (!file || fread(image, sizeof(float), {floats}, file) != {floats})
        return fprintf(stderr, "usage: {name} IMAGE (a file of {floats} floats)\\n"), 1;
    fclose(file);{read if weights_file else ""}
    void *workspace = malloc({name}_workspace_bytes());
    if (!workspace)
        return fprintf(stderr, "no memory\\n"), 1;
    {name}_run(image, logits, {"weights, " if weights_file else ""}workspace);
    for (int n = 0; n < {upper}_CLASSES; ++n)
        printf("%.9g\\n", logits[n]);
    free(workspace);
    return 0;
}}
"""


def verify_c(files: CFiles, network: Network, timeout_s: float = TIMEOUT_S) -> float:
    """The error of the logits (norm-wise, relative) against float64, compiled with sanitizers and without.

    Raises `CompilerError` where there is no compiler, or a compilation or a run ends otherwise than well within
    `timeout_s`; `IgcNasError` where the logits are not the network's.
    """
    image = torch.randn(1, *files.image, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        single = network(image)[0].double().numpy()
        wanted = network.double()(image.double())[0].numpy()
    network.float()
    bound = max(MOST_ERROR, 4 * _error(single, wanted))
    kinds = ("-O2", "-march=native"), SANITIZERS
    found = max(_error(_run(files, image.numpy(), flags, timeout_s), wanted) for flags in kinds)
    if not found <= bound:
        raise IgcNasError(f"the C program's logits differ from the network's by {found:.1e} (at most {bound:.1e})")
    return found


def _error(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), np.finfo(np.float32).tiny))


def _run(files: CFiles, image: NDArray[np.float32], flags: tuple[str, ...], timeout_s: float) -> NDArray[np.float64]:
    command = compiler()
    if command is None:
        raise CompilerError("there is no C compiler to check the file with", "install gcc or clang, or name one in $CC")
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as text:
        folder = Path(text)
        files.write(folder)
        (folder / "image").write_bytes(image.astype(np.float32).tobytes())
        words = [*command, *FLAGS, *flags, f"{files.name}_main.c", f"{files.name}.c", "-o", "program"]
        _ended_well(words, folder, timeout_s, "the C compiler fails")
        lines = _ended_well(["./program", "image"], folder, timeout_s, "the C program fails").split()
    return np.array([float(line) for line in lines])


def _ended_well(words: list[str], folder: Path, timeout_s: float, what: str) -> str:
    try:
        status, out, err = finished(words, timeout_s, cwd=folder)
    except OSError as error:
        raise CompilerError(f"{what}: {error}", "name a folder in $TMPDIR that is not mounted noexec") from None
    except subprocess.TimeoutExpired:
        raise CompilerError(f"{what}: it took longer than {timeout_s:g} s", " ".join(words)) from None
    if status or err:
        said = err.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        raise CompilerError(f"{what}: {said[0]:.300}", " ".join(words))
    return out.decode()
