"""The literature's networks by name: exact counts, files, printed errors, and what is said about a wrong name."""

import re
from itertools import pairwise

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of, rows
from igc_nas.arch.layers import Branched, Layer
from igc_nas.arch.literature import FAMILIES, NAMES, PRINTED, is_literature
from igc_nas.arch.named import network
from igc_nas.arch.plan import arch_id, plan
from igc_nas.errors import ConfigError
from tests.support.builders import one_line

# name, classes, parameters, multiply-adds: counted from the papers and from public code, by other programs
COUNTS = """
plain20 10 269722 40551040
plain44 10 658586 97174144
plain110 10 1727962 252887680
resnet20-a 10 269722 40551040
resnet44-a 10 658586 97174144
resnet56-a 10 853018 125485696
resnet20-b 10 272474 40813184
resnet32-b 10 466906 69124736
resnet110-b 10 1730714 253149824
resnet20-b 100 278324 40818944
resnet32-b 100 472756 69130496
resnet56-b 100 861620 125753600
preresnet110 10 1730522 253149824
resnext29-1x64d 10 4914250 748365824
resnext29-32x4d 10 4775754 774055936
resnext29-8x64d 100 34518948 5387358208
resnext29-16x64d 10 68155210 10688866304
resnext29-2x64d-kuangliu 10 9128778 1409492992
densenet-40-12 10 1019722 264812928
densenet-100-12 100 7084852 1769621568
densenet-100-24 100 27457972 6889556544
densenet-bc-100-12 10 769162 287929692
densenet-bc-250-24 100 15480556 5418941784
densenet-bc-190-40 10 25624430 9301945740
densenet-40-12-pytorchcv 10 599050 205906452
densenet-b-100-12 10 1210066 376829808
se-resnet20 10 274847 40815200
se-resnet110 10 1744952 253161920
se-resnet56 100 868739 125759648
se-resnet20-nobias 10 274490 40815200
se-preresnet110 10 1744760 253161920
se-preresnet164 100 1928492 247863296
se-wrn16-8 10 11049290 1548231680
mobilenetv1-x0.5 10 823722 12167168
mobilenetv1-x0.75 10 1824250 26508288
mobilenetv1-x1.0 10 3217226 46354432
mobilenetv1-bs-x0.25 10 215648 12038656
mobilenetv1-bs-x0.75 10 1824256 99816960
mobilenetv1-bs-x0.5 100 869898 45357056
mobilenetv1-bs-x1.0 100 3309482 175648768
mobilenetv2-kuangliu 10 2296922 91154944
mobilenetv2-x0.5 10 700490 27969024
mobilenetv2-x1.0 10 2236682 87976448
mobilenetv2-x0.75 100 1483524 59425280
mobilenetv2-x1.0 100 2351972 88091648
mobilenetv2-x1.4 100 4495076 170234624
mobilenetv2-bs-x0.5 10 697552 25595392
mobilenetv2-bs-x1.0 10 2237776 89025024
mobilenetv2-bs-x0.25 100 364498 8188416
mobilenetv2-igcv3 100 2353060 166327296
mobilenetv3-small 10 1518594 17501728
mobilenetv3-large 100 4321948 66572384
mobilenetv3-small-bs-x1.0 10 1094062 17335456
mobilenetv3-large-bs-x0.5 10 821963 18494872
mobilenetv3-small-bs-x1.0 100 1145992 17387296
mobilenetv3-small-bs-x0.5 100 487641 5455240
mobilenetv3-large-bs-x1.0 100 3066512 65573728
mobilenetv3-small-imagenet 1000 2542856 56510400
dpn92 10 34236634 2042422272
dualpathnet28-10 10 47751738 6808855936
shufflenetv1-g2 10 887582 39614080
shufflenetv1-g3-wei 100 1012108 41693952
shufflenetv2-x0.5 10 352042 10902016
shufflenetv2-x1.5 10 2488874 94259712
shufflenetv2-x1.0 100 1356104 45094272
shufflenetv2-x1.5 100 2581124 94351872
shufflenetv2-x2.0 100 5549896 187995520
xception 100 21013988 1129865728
condensenet-50 10 214186 27183376
condensenet-86 10 516202 62377888
condensenet-110 10 785066 93049856
condensenet-122 10 939754 110548528
condensenet-182 10 4209226 493916592
mobilefacenet-112 128 1003136 220965376
mobilenetv2-igcv3-gdc 10 2322250 166294016
alexnet-groups-imagenet 1000 60965224 724406816
"""
# parameters printed by zeiss-microscopy/BSConv (bin/bsconv_pytorch_train.py)
BSCONV = """
wrn-16-2-bsconv-s 10 60647
wrn-40-1-bsconv-u 10 80176
wrn-16-2-bsconv-u 10 97392
wrn-40-2-bsconv-s 10 170855
wrn-28-2-bsconv-u 10 193264
wrn-28-4-bsconv-s 10 409831
wrn-28-6-bsconv-s 10 882599
wrn-40-4-bsconv-s 10 606055
wrn-16-8-bsconv-s 10 797543
wrn-40-6-bsconv-s 10 1305959
wrn-28-8-bsconv-s 10 1534055
wrn-40-1-bsconv-u 100 86026
resnet56-bsconv-s 100 83505
wrn-16-2-bsconv-s 100 72257
wrn-28-2-bsconv-s 100 127361
resnet110-bsconv-s 100 159105
wrn-40-3-bsconv-s 100 372737
"""


@pytest.mark.parametrize("row", COUNTS.split("\n")[1:-1])
def test_parameters_and_macs_are_those_of_the_public_network(row: str) -> None:
    name, *counts = row.split()
    classes, params, macs = map(int, counts)
    cost = cost_of(network(name, classes).arch)
    assert (cost.params, cost.macs) == (params, macs)


@pytest.mark.parametrize("row", BSCONV.split("\n")[1:-1])
def test_parameters_of_bsconv_networks_are_the_printed_ones(row: str) -> None:
    name, classes, params = row.split()
    assert cost_of(network(name, int(classes)).arch).params == int(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_network_is_a_file_as_any_other(name: str) -> None:
    arch = network(name).arch
    again = ArchConfig.from_toml(arch.to_toml())
    assert again == arch
    assert ArchConfig.parse(arch.to_dict()) == arch
    assert arch_id(again) == arch_id(arch)
    assert is_literature(name)
    assert network(name, 7).arch.classes == 7


def test_different_names_are_different_networks() -> None:
    ids = {name: arch_id(network(name).arch) for name in NAMES}
    assert len(set(ids.values())) == len(NAMES)


def test_option_b_is_the_residual_stage_of_regular_convolutions() -> None:
    stages = [
        {"unit": "conv", "width": w, "blocks": 3, "stride": s, "residual": True} for w, s in ((16, 1), (32, 2), (64, 2))
    ]
    arch = ArchConfig.parse({"stem": {"width": 16}, "stage": stages})
    assert arch_id(network("resnet20-b").arch) == arch_id(arch)
    assert arch_id(network("plain20").arch) == arch_id(network("regconv-w16-d20").arch)
    assert network("wrn-28-10").arch == network("wrn28-10").arch


@pytest.mark.parametrize("name", PRINTED)
def test_printed_errors_are_of_networks_that_exist(name: str) -> None:
    found = network(name)
    assert found.source
    assert found.printed_error
    assert all(0.02 < error < 0.35 for error in found.printed_error.values())
    for data, error in found.printed_error.items():
        assert data in ("cifar10", "cifar100")
        assert error < 0.1 if data == "cifar10" else error > 0.15


def test_every_family_has_a_name_that_was_compared() -> None:
    for pattern, family in FAMILIES.items():
        assert any(re.fullmatch(family.regex, name) for name in NAMES), pattern


def test_layers_with_parameters_have_names_of_their_own_in_a_block() -> None:
    for name in NAMES:
        for block in plan(network(name).arch).blocks:
            names = list(_names(block.layers))
            assert len(set(names)) == len(names), (name, block.name)


def _names(layers: tuple[Layer, ...]) -> list[str]:
    found = []
    for layer in layers:
        if isinstance(layer, Branched):
            found += [name for branch in layer.branches for name in _names(branch)]
        elif hasattr(layer, "name"):
            found.append(layer.name)
    return found


def test_rows_add_up_and_join_the_branches() -> None:
    for name in (
        "densenet-bc-40-12",
        "dpn26",
        "shufflenetv2-x0.5",
        "shufflenetv1-g2",
        "dualpathnet28-1",
        "condensenet-50",
    ):
        arch = network(name).arch
        found = list(rows(plan(arch)))
        assert sum(row.cost.macs for row in found) == cost_of(arch).macs
        assert found[-1].shape == (10,)
        for before, after in pairwise(found):
            if type(after.layer).__name__ == "Norm" and not after.branch and not before.branch:
                assert before.shape == after.shape


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet21-a", "resnet21-a: the depth is 6 * n + 2; 21 is not; use resnet20-a or resnet26-a"),
        ("se-resnet9", "se-resnet9: the depth is 6 * n + 2; 9 is not; use se-resnet8 or se-resnet14"),
        ("wrn-17-2", "wrn-17-2: the depth is 6 * n + 4; 17 is not; use wrn-16-2 or wrn-22-2"),
        ("wrn-16-0", "wrn-16-0: the width is from 1 to 64; 0 is not"),
        (
            "densenet-bc-99-12",
            "densenet-bc-99-12: the depth is 6 * n + 4; 99 is not; use densenet-bc-94-12 or ",
        ),
        ("densenet-40-0", "densenet-40-0: the growth rate is from 1 to 4096; 0 is not"),
        (
            "resnext28-8x64d",
            "resnext28-8x64d: the depth is 9 * n + 2; 28 is not; use resnext20-8x64d or resnext29-8x64d",
        ),
        ("condensenet-3", "condensenet-3: the depth is 6 * n + 2; 3 is not; use condensenet-8"),
        ("mobilenetv2-x0.01", "mobilenetv2-x0.01: the width multiplier is from 0.125 to 8; 0.01 is not"),
        ("shufflenetv2-x0.7", "shufflenetv2-x0.7: the multiplier is one of 0.5, 1.0, 1.5, 2.0; 0.7 is not; use "),
        ("shufflenetv1-g4", "shufflenetv1-g4: the number of groups is one of 2, 3; 4 is not; use shufflenetv1-g2 or "),
        ("dpn50", "dpn50: the depth is one of 26, 92; 50 is not; use dpn26 or dpn92"),
        ("mobilenetv3-smal", "unknown network 'mobilenetv3-smal'; did you mean mobilenetv3-small?"),
        ("resnet20", "unknown network 'resnet20'; did you mean resnet20-"),
        ("densenet-40", "unknown network 'densenet-40'; did you mean densenet-40-12?"),
        ("resnext29", "unknown network 'resnext29'; did you mean "),
        ("xception-large", "unknown network 'xception-large'; did you mean xception?"),
        ("resnet99999-a", "resnet99999-a: the depth is 6 * n + 2; 99999 is not; use resnet"),
        ("resnext29-0x4d", "resnext29-0x4d: "),
        ("wrn-16-2-bsconv-x", "unknown network 'wrn-16-2-bsconv-x'; did you mean wrn-16-2-bsconv-"),
    ],
)
def test_a_wrong_name_is_answered_with_the_next_one(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        network(name)
    assert f"{one_line(raised)}; {raised.value.hint}".startswith(said)


def test_a_proxy_at_another_resolution_has_a_head_for_its_maps() -> None:
    gdc, average = network("mobilenetv2-igcv3-gdc").arch, network("mobilenetv2-igcv3").arch
    assert average.trained_at(16) is average
    (kernel,) = {row.layer.kernel for row in rows(plan(gdc.trained_at(16))) if getattr(row.layer, "name", "") == "gdc"}
    assert kernel == 4
    assert gdc.map_sides == (8, 8)
