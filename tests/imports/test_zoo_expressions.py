"""Expressions and references of foreign configs: the few that are known are worked out, and nothing ever runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.imports.zoo_bundles import zoo_config
from voxelgate.bundle.imports.zoo_documents import read_foreign_config
from voxelgate.bundle.imports.zoo_expressions import NumberType
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.core.errors import BundleError

CODE = {"arch_code_a": np.ones((2, 3))}


def config_of(**entries: Any) -> ZooConfig:
    return ZooConfig(entries, "configs/inference.json", lambda _: CODE)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("$[1.5, 1.5, 1.5] if @options#high else [3.0, 3.0, 3.0]", [1.5, 1.5, 1.5]),
        ("$'model.pt' if @options::low else 'model_lowres.pt'", "model_lowres.pt"),
        ("$len(@labels) + @channels", 3),
        ("$@bundle_root + '/models/model.pt'", "./models/model.pt"),
        ("$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "cpu"),
        ("$@network.to(@device)", {"_target_": "UNet"}),
        ("$torch.float32", NumberType("float32")),
        ("$@list + [3]", [1, 2, 3]),
        ("$max(@list) * 2 - -1", 5),
        ("$not @options#low and 1 < @channels + 1 <= 2", True),
        ("$list(range(2, 5))", [2, 3, 4]),
        ("$monai.networks.nets.UNet(dims=@channels)", {"_target_": "monai.networks.nets.UNet", "dims": 1}),
        ("@options#sizes#1", 96),
        ("%options::sizes", [64, 96]),
        ("$@options['sizes'][-1]", 96),
    ],
)
def test_known_expressions_give_what_python_would_give(expression: str, expected: Any) -> None:
    config = config_of(
        options={"high": True, "low": False, "sizes": [64, "$32 * 3"]},
        labels={"spleen": 1, "background": 0},
        channels=1,
        list=[1, 2],
        network={"_target_": "UNet"},
        device="cpu",
        asked=expression,
    )

    assert config.value("asked") == expected


def test_arrays_of_a_file_are_looked_into() -> None:
    config = config_of(code="$torch.load(@bundle_root + '/code.pt')", asked="$torch.from_numpy(@code['arch_code_a'])")

    assert np.array_equal(config.value("asked"), CODE["arch_code_a"])


@pytest.mark.parametrize(
    "expression",
    [
        "$__import__('os').system('touch hacked')",
        "$().__class__.__base__.__subclasses__()",
        "$open('/etc/passwd').read()",
        "$os.environ",
        "$eval('1')",
        "$getattr(torch, 'load')('x')",
        "$[one for one in @list]",
        "$(lambda: 1)()",
        "$f'{@list}'",
        "$'%s' % @list",
        "$'a' * 100000",
        "$[0] * 1000000000",
        "$list(range(10 ** 12))",
        "$list(range(1000000))",
        "$9007199254740993 * 9007199254740993",
        "$1 / 0",
        "$@list[9]",
        "$*@list",
        "$dict(**@list)",
        "$@list.append(1)",
        "$import os",
        "$" + "(" * 300 + "1" + ")" * 300,
        "$" + "-" * 50_000 + "1",
        "$x := 1",
        "$(y := 1)",
        "@missing",
        "@list#7",
        "@::list",
        "%other.json::list",
        "$@missing + 1",
    ],
)
def test_all_else_is_refused_in_a_sentence_and_nothing_happens(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(list=[1, 2], asked=expression)

    with pytest.raises(BundleError, match=r"^configs/inference\.json: ") as caught:
        config.value("asked")

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_asked_for_is_not_worked_out() -> None:
    config = config_of(asked={"size": "@size"}, size=3, datalist="$glob.glob('/data/*')")

    assert config.value("asked") == {"size": 3}


def test_a_circle_is_refused() -> None:
    with pytest.raises(BundleError, match="a refers to b refers to a"):
        config_of(a="@b", b={"c": "$@a + 1"}).value("a")


def test_parts_that_are_switched_off_are_left_out() -> None:
    config = config_of(steps=[{"_target_": "A", "_disabled_": "$1 > 2"}, {"_target_": "B", "_disabled_": True}])

    assert config.value("steps") == [{"_target_": "A"}]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yaml", "a: !!python/object/apply:os.system ['touch hacked']", "python/object"),
        ("a.yaml", "a: !!python/name:os.system ''", "python/name"),
        ("a.yaml", "a: &a [x, *a]", "nested too deeply"),
        ("a.yaml", "[" * 5000 + "]" * 5000, "YAML"),
        ("a.yaml", "a: {b: c", "YAML"),
        ("a.yaml", "- 1", "no settings"),
        ("a.yaml", "1: 2", "no settings"),
        ("a.json", '{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ("a.json", '{"a": 1', "JSON"),
        ("a.json", "[]", "no settings"),
        ("a.json", "\xff", "JSON"),
    ],
)
def test_a_config_that_is_more_or_less_than_data_is_refused(
    name: str, text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")

    with pytest.raises(BundleError, match=reason) as caught:
        read_foreign_config(path)

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_of_aliases_is_refused_without_going_off(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "inference.yaml"
    path.write_text("\n".join(levels))

    with pytest.raises(BundleError, match="more than 200000 parts"):
        read_foreign_config(path)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1, 2.5]\nb: {c: '@a'}\n")
    (tmp_path / "a.json").write_text('{"a": [1, 2.5], "b": {"c": "@a"}}')

    assert read_foreign_config(tmp_path / "a.yaml") == read_foreign_config(tmp_path / "a.json")


def test_the_config_of_a_bundle_is_read_with_its_root_where_it_lies() -> None:
    config = config_of(**zoo_config())

    assert config.value("checkpointloader")["load_path"] == "./models/model.pt"
    assert config.value("postprocessing")["transforms"][1]["transform"] == config.value("preprocessing")
