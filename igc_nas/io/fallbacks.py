"""What does not work on a machine and is done in another way: a warning, which programs show as a notice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any


class FallbackWarning(RuntimeWarning):
    """Something of this machine does not work, and the work goes on in another way; the text says both."""


@contextlib.contextmanager
def fallbacks_to(notice: Callable[[str], None]) -> Iterator[None]:
    """Within the context, the text of each `FallbackWarning` goes to `notice` instead of to stderr.

    No filter is changed: that would have Python show again what it shows once.
    """
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, FallbackWarning):
            notice(str(message))
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others
