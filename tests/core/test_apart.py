"""What one thing does to the process that looks at it is nothing to the others, or to who asked."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from voxelgate.core.apart import Bounds, each_apart

BOUNDS = Bounds(seconds=2, memory_bytes=2**29)


def read_bytes_of(path: Path) -> int:
    return len(path.read_bytes())


def behave(how: str) -> str:
    if how == "dies":
        os.abort()
    if how == "hangs":
        time.sleep(3600)
    if how == "fills memory":
        how += str(len(bytearray(2**31)))
    if how == "raises":
        raise KeyError(how)
    if how == "nests":
        behave(how)
    if how == "leaves":
        sys.exit(0)
    return how


@pytest.mark.parametrize("how", ["dies", "hangs", "fills memory", "raises", "nests", "leaves"])
def test_whatever_one_thing_does_the_others_are_looked_at(how: str) -> None:
    assert list(each_apart(behave, ["a", how, "b", "c"], BOUNDS)) == ["a", None, "b", "c"]


@pytest.mark.slow
def test_a_pipe_that_nobody_writes_into_costs_its_time_and_no_more(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"1234")
    paths = [tmp_path / "pipe", tmp_path / "file"]

    assert list(each_apart(read_bytes_of, paths, BOUNDS)) == [None, 4]


def test_after_some_that_cost_a_process_nothing_is_known_of_the_rest() -> None:
    bounds = replace(BOUNDS, most_lost=2)

    assert list(each_apart(behave, ["dies", "a", "dies", "b"], bounds)) == [None, "a", None, None]


def test_nothing_starts_no_process() -> None:
    assert list(each_apart(behave, [])) == []


def test_headers_of_a_forecast_are_read_without_pytorch() -> None:
    code = "import sys; import voxelgate.segmentation.batch.forecast.volume_facts; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
