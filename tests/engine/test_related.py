"""What `report --confirm` trains on a GPU, and what the report makes of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from igc_nas.analysis.proxy import proxy_report
from igc_nas.engine.related import confirmation_searches
from igc_nas.engine.search import Run, search
from igc_nas.errors import StudyError, UsageError
from igc_nas.nn.device import Device
from igc_nas.study.spec import Target
from igc_nas.study.study import Study, load_study
from tests.support.commands import Command
from tests.support.searches import evaluate, spec

GPU = Device("cuda", "cuda:0", "a GPU")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(Device, "uuid", "GPU-0")  # of no GPU that NVML knows
    monkeypatch.setattr(Device, "memory", 80 << 30)
    return GPU


def studied(folder: Path, trials: int) -> Study:
    asked = spec(name=folder.name, sampler="random", prune_below=0.0)
    list(search(asked, Run(folder, trials=trials), evaluate=evaluate))
    return load_study(folder)


def test_candidates_of_all_sizes_train_longer_and_from_another_seed(tmp_path: Path, gpu: Device) -> None:
    study = studied(tmp_path / "s", 20)
    target = Target(images=10**6, recipe=study.spec.recipe, share=0.4)
    study = replace(study, spec=study.spec.model_copy(update={"target": target}))
    searches = confirmation_searches(study, [gpu], 9, None)
    assert [asked.name for asked, _ in searches] == ["long", "seed1"]
    (longer, run), (repeat, _) = searches
    assert longer.recipe.samples == 5 * study.spec.recipe.samples
    assert repeat.recipe == study.spec.recipe
    assert longer.seed == repeat.seed == study.spec.seed + 1
    assert longer.target is repeat.target is longer.plan is None, "no network is trained but these"
    params = sorted(candidate.cost.params for candidate in study.candidates)
    counts = {candidate.arch: candidate.cost.params for candidate in study.candidates}
    trained = [counts[arch] for arch in run.enqueue]
    assert len(trained) == 9
    assert (trained[0], trained[-1]) == (params[0], params[-1])
    for asked, run in searches:  # as on a GPU, with invented numbers
        list(search(asked, replace(run, devices=()), evaluate=evaluate))
    found = proxy_report(study)
    assert found.reference.name.endswith("long")
    assert found.shared == 9
    assert [row.study for row in found.repeats] == ["s/seed1"]


def test_too_few_candidates_have_no_order(tmp_path: Path, gpu: Device) -> None:
    with pytest.raises(StudyError, match="s has 3 candidates; an order needs 8"):
        confirmation_searches(studied(tmp_path / "s", 3), [gpu], 9, None)


def test_without_a_gpu_it_says_so(tmp_path: Path, cli: Command) -> None:
    study = studied(tmp_path / "s", 10)
    answer = cli("report", study.folder, "--confirm", "8", "--device", "cpu")
    assert answer.status == 2
    assert "--confirm trains 16 networks, for which it needs a GPU" in answer.err
    assert not (tmp_path / "s" / "long").exists()
    with pytest.raises(UsageError):
        confirmation_searches(study, [Device("cpu", "cpu", "a CPU")], 8, None)
