"""A small CIFAR-10, whose hashes are the official ones while a test runs."""

import pytest

from igc_nas.data.cifar import LAYOUTS
from tests.data.test_datasets import SmallCifar, small_cifar


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    small = small_cifar("cifar10")
    monkeypatch.setitem(LAYOUTS, "cifar10", small.layout)
    return small
