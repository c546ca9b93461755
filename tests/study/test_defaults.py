"""Defaults: recipes, extents, a new study's spec."""

from pathlib import Path

import pytest

from igc_nas.data.datasets import locate
from igc_nas.errors import ConfigError, InfeasibleError, UsageError
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import (
    MEMORY_PER_WORKER,
    RECIPES,
    Extent,
    cpu_quotas,
    default_extent,
    default_recipe,
    fitting_batch,
    new_spec,
    usable_cores,
)
from igc_nas.study.plan import RUNG_IMAGES
from igc_nas.study.spec import StudySpec

CIFAR_TRAIN = 50_000


@pytest.mark.parametrize("kind", RECIPES)
def test_a_default_recipe_fits_the_training_set(kind: str) -> None:
    recipe = default_recipe(kind)
    assert recipe.train_size + recipe.held_out <= CIFAR_TRAIN
    assert recipe.train_size >= recipe.batch
    assert recipe.samples == recipe.epochs * recipe.train_size


def test_the_default_recipe_of_a_gpu_is_longer() -> None:
    cpu, cuda = default_recipe("cpu"), default_recipe("cuda")
    assert cpu.samples * cpu.resolution**2 < cuda.samples * cuda.resolution**2
    assert (cpu.dtype, cuda.dtype) == ("float32", "bfloat16")


@pytest.mark.parametrize("kind", RECIPES)
def test_a_change_of_the_recipe_changes_one_key(kind: str) -> None:
    usual, changed = default_recipe(kind).model_dump(), default_recipe(kind, epochs=7).model_dump()
    assert changed == usual | {"epochs": 7}
    assert default_recipe(kind).model_dump() == usual


@pytest.mark.parametrize("changes", [{"epoch": 3}, {"epochs": 0}, {"epochs": "3"}, {"dtype": "float16"}, {"lr": None}])
def test_a_wrong_change_is_refused_by_name(changes: dict[str, object]) -> None:
    (key,) = changes
    with pytest.raises(ConfigError, match=rf"^recipe: {key}: "):
        default_recipe("cpu", **changes)


@pytest.mark.parametrize(
    ("cores", "gigabytes", "extent"),
    [
        (1, 64, Extent(time_s=600, workers=1)),
        (2, 64, Extent(time_s=600, workers=2)),
        (6, 64, Extent(time_s=600, workers=6)),
        (64, 640, Extent(time_s=600, workers=8)),
        (16, 8, Extent(time_s=600, workers=4)),
        (16, 0, Extent(time_s=600, workers=1)),
    ],
)
def test_a_cpu_search_uses_the_cores_that_memory_allows_and_ends_in_ten_minutes(
    cores: int, gigabytes: int, extent: Extent
) -> None:
    assert default_extent("cpu", cores=cores, memory=gigabytes * 2**30) == extent
    assert MEMORY_PER_WORKER == 2 * 2**30


@pytest.mark.parametrize(
    ("devices", "cores", "gigabytes", "workers"),
    [(1, 8, 80, 2), (1, 8, 24, 1), (1, 1, 80, 1), (2, 16, 80, 4), (8, 8, 140, 8), (8, 64, 140, 16), (1, 8, 8, 1)],
)
def test_a_gpu_search_has_two_workers_a_gpu_where_cores_and_memory_allow(
    devices: int, cores: int, gigabytes: int, workers: int
) -> None:
    found = default_extent("cuda", devices, cores=cores, gpu_memory=gigabytes * 2**30)
    assert found == Extent(time_s=7200, workers=workers)
    assert default_extent("cuda", devices, cores=cores).workers == devices


@pytest.mark.parametrize(
    ("gigabytes", "changes"),
    [
        (80, {}),
        (15, {}),  # T4
        (11.6, {"batch": 250, "lr": 0.2}),
        (7.6, {"batch": 250, "lr": 0.2}),
        (5.7, {"batch": 125, "lr": 0.1}),
        (2, {"batch": 125, "lr": 0.1}),
    ],
)
def test_a_smaller_gpu_trains_in_smaller_batches(gigabytes: float, changes: dict[str, float]) -> None:
    """They divide the images that are trained and scored, too: one batch size in a trial."""
    found = fitting_batch(int(gigabytes * 2**30))
    assert found == changes
    recipe = default_recipe("cuda", **found)
    assert not [images for images in (recipe.train_size, recipe.held_out, RUNG_IMAGES) if images % recipe.batch]


def test_there_is_at_least_one_usable_core() -> None:
    assert usable_cores() >= 1


def test_a_new_spec_is_complete() -> None:
    info = locate("shapes", None)
    made = new_spec(info, "a device")
    assert made == StudySpec.from_toml(made.to_toml())
    assert (made.name, made.space_name, made.classes) == ("igc_cifar-shapes-any-s0", "igc_cifar", info.classes)
    assert (made.dataset, made.dataset_sha256, made.latency.device) == (info.label, info.sha256, "a device")
    assert made.latency.input == made.space.input
    assert made.reference_ms is None
    assert made.bounds == {}


def test_a_new_spec_takes_changes() -> None:
    made = new_spec(
        locate("shapes", None),
        "a GPU",
        "cuda",
        space="tiny",
        name="mine",
        budget=Budget(params=2000),
        objectives=("error", "macs"),
        sampler="nsga2",
        seed=3,
        recipe={"epochs": 1},
    )
    assert (made.name, made.objectives, made.sampler, made.seed) == ("mine", ("error", "macs"), "nsga2", 3)
    assert made.budget.params == 2000
    assert made.recipe == default_recipe("cuda", epochs=1, train_size=18_000, held_out=2000)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"space": "tinny"}, ConfigError),
        ({"name": "a/b"}, UsageError),
        ({"budget": Budget(params=10)}, InfeasibleError),
        ({"recipe": {"epoch": 3}}, ConfigError),
        ({"recipe": {"batch": 1, "resolution": 4}}, ConfigError),  # one pixel of one image has no variance
    ],
)
def test_a_new_spec_refuses_invalid_settings(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        new_spec(locate("shapes", None), "a device", **({"space": "tiny"} | changes))


def test_a_recipe_is_cut_to_a_smaller_dataset() -> None:
    recipe = new_spec(locate("shapes", None), "some GPU", "cuda", space="tiny").recipe
    assert (recipe.held_out, recipe.train_size) == (2000, 18_000)
    with pytest.raises(ConfigError, match="shapes has 20000 images"):
        new_spec(locate("shapes", None), "some GPU", "cuda", space="tiny", recipe={"train_size": 19_000})


V2, V1 = "0::{}\n", "3:cpu,cpuacct:{}\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        (V2.format("/"), {"cpu.max": "150000 100000"}, [1.5]),
        (V2.format("/"), {"cpu.max": "max 100000"}, []),
        (V2.format("/a/b.service"), {"a/cpu.max": "100000 100000"}, [1.0]),
        (V2.format("/a/b.service"), {"a/cpu.max": "300000 100000", "a/b.service/cpu.max": "200000 100000"}, [2.0, 3.0]),
        (V1.format("/docker/x"), {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, [1.0]),
        (V1.format("/g"), {"cpu/g/cpu.cfs_quota_us": "50000", "cpu/g/cpu.cfs_period_us": "100000"}, [0.5]),
        (V1.format("/g"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("", {}, []),
        ("\x00:garbage\n1:2\n", {"cpu.max": "x"}, []),
    ],
)  # fmt: skip
def test_a_cpu_quota_is_seen_wherever_it_stands(
    groups: str, files: dict[str, str], quotas: list[float], tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(cpu_quotas(tmp_path)) == quotas
