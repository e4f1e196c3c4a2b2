"""Preflight: a batch takes what it is said to need before it starts, and what cannot be done is refused."""

import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st

from tests.batch_bundle import DEADLY_HU, make_moody_bundle, save_case
from tests.batch_runs import tree
from tests.dicom_files import stack, write_all
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.core.errors import OutputError, UsageError
from voxelgate.core.machine import GIB
from voxelgate.images.volumes import is_nifti, read_volume
from voxelgate.inference.memory import EARLIER_AXIS, MemoryModel, StreamingModel, Windows
from voxelgate.segmentation.batch.forecast.needs import Measured, Room, Size, Way, WindowModel, forecast
from voxelgate.segmentation.batch.forecast.preflight import preflight, summary
from voxelgate.segmentation.batch.forecast.sample import sample
from voxelgate.segmentation.batch.forecast.volume_facts import volume_of
from voxelgate.segmentation.batch.run_batch import (
    attention_of,
    cases_in,
    foretell,
    segment_cases,
    setup_of,
)
from voxelgate.segmentation.batch.status import status
from voxelgate.segmentation.batch.worker import CaseJob, Setup, work
from voxelgate.segmentation.batch.worker_process import WorkerProcess
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output

DiskUsage = namedtuple("DiskUsage", "total used free")
MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]
HIPPOCAMPUS = ROOT / "bundles" / "hippocampus_mri_segmentation"
AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])

WINDOWS = Measured(
    base_bytes=400 * MIB,
    idle_bytes=70 * MIB,
    channels=1,
    classes=5,
    body=(1.0, 0.5, 0.8),
    streaming=None,
    windows=WindowModel(MemoryModel(600.0, 5), Windows((96, 96, 96), 0.25)),
    whole_bytes=0.0,
    network_s=1e-6,
    files_s=1e-7,
)
STREAMING = replace(WINDOWS, streaming=StreamingModel(20 * MIB, 14000.0, (0, 1, 2), 5))

HUNGRY = replace(STREAMING, body=(1.0, 1.0, 1.0))

sides = st.integers(4, 600)
shapes = st.tuples(sides, sides, sides)


def size(shape: tuple[int, int, int], case_id: str = "case") -> Size:
    voxels = math.prod(shape)
    return Size(case_id, shape, shape, stored_bytes=2 * voxels, turned_bytes=2 * voxels)


def with_classes(measured: Measured, classes: int) -> Measured:
    streaming = None if measured.streaming is None else replace(measured.streaming, classes=classes)
    windows = WindowModel(MemoryModel(600.0, classes), Windows((96, 96, 96), 0.25))
    return replace(measured, classes=classes, streaming=streaming, windows=windows)


@given(shape=shapes, axis=st.integers(0, 2), more=st.integers(1, 300))
def test_more_slices_never_need_less_where_volumes_are_streamed(
    shape: tuple[int, int, int], axis: int, more: int
) -> None:
    longer = list(shape)
    longer[axis] += more

    few, many = (forecast([size(one)], STREAMING) for one in (shape, (longer[0], longer[1], longer[2])))

    assert many.peak_bytes >= few.peak_bytes
    assert many.elapsed_s >= few.elapsed_s
    assert many.disk_bytes >= few.disk_bytes


@given(shape=shapes, axis=st.integers(0, 2), more=st.integers(1, 300))
def test_more_slices_need_less_in_windows_only_where_these_turn_to_another_axis(
    shape: tuple[int, int, int], axis: int, more: int
) -> None:
    longer = list(shape)
    longer[axis] += more

    few, many = (forecast([size(one)], WINDOWS) for one in (shape, (longer[0], longer[1], longer[2])))

    assert EARLIER_AXIS * many.peak_bytes >= few.peak_bytes
    assert many.elapsed_s >= few.elapsed_s


@given(shape=shapes, count=st.integers(2, 9))
def test_of_cases_done_two_at_a_time_the_shorter_stage_hides_behind_the_longer(
    shape: tuple[int, int, int], count: int
) -> None:
    sizes = [size(shape, f"case-{number}") for number in range(count)]

    one, two = (forecast(sizes, STREAMING, Room(cases_at_a_time=at_a_time)) for at_a_time in (1, 2))

    assert one.elapsed_s / 2 <= two.elapsed_s * (1 + 1e-9)
    assert two.elapsed_s < one.elapsed_s


@given(shape=shapes, classes=st.integers(2, 400), more=st.integers(1, 400))
@pytest.mark.parametrize("measured", [STREAMING, WINDOWS], ids=["streaming", "windows"])
def test_more_classes_never_need_less(measured: Measured, shape: tuple[int, int, int], classes: int, more: int) -> None:
    few, many = (forecast([size(shape)], with_classes(measured, n)) for n in (classes, classes + more))

    assert many.peak_bytes >= few.peak_bytes
    assert many.elapsed_s == pytest.approx(few.elapsed_s)


@given(st.lists(shapes, min_size=1, max_size=6), st.floats(0.5, 8.0), st.integers(1, 2))
def test_nothing_that_is_said_to_fit_exceeds_the_limit_and_no_case_is_lost(
    volumes: list[tuple[int, int, int]], limit_gib: float, at_a_time: int
) -> None:
    sizes = [size(shape, f"case-{number}") for number, shape in enumerate(volumes)]

    found = forecast(sizes, STREAMING, Room(process_bytes=limit_gib * GIB, cases_at_a_time=at_a_time))

    assert found.peak_bytes <= limit_gib * GIB
    assert {case.case_id for case in found.cases} | set(found.unfit) == {one.case_id for one in sizes}
    assert not {case.case_id for case in found.cases} & set(found.unfit)
    for case in found.cases:
        assert STREAMING.base_bytes + STREAMING.idle_bytes + case.alone_bytes <= limit_gib * GIB


def test_where_streaming_does_not_fit_windows_are_taken_and_where_nothing_fits_the_case_is_refused() -> None:
    large = size((400, 400, 400), "large")

    free, tight, least = (forecast([large], HUNGRY, Room(gib * GIB)) for gib in (16, 3, 0.8))

    assert [one.cases[0].way for one in (free, tight)] == [Way.STREAMING, Way.WINDOWS]
    assert tight.elapsed_s > free.elapsed_s
    assert least.cases == ()
    assert least.unfit["large"].startswith("large: needs ")
    assert "a process may have 0.80 GiB; raise --max-memory" in least.unfit["large"]


def test_a_second_case_is_read_beside_the_network_only_where_both_fit() -> None:
    pair = [size((300, 300, 300), "one"), size((300, 300, 300), "other")]
    alone = forecast(pair, STREAMING)
    together = forecast(pair, STREAMING, Room(cases_at_a_time=2))
    between = (alone.peak_bytes + together.peak_bytes) // 2

    narrow = forecast(pair, STREAMING, Room(machine_bytes=between, cases_at_a_time=2))

    assert together.peak_bytes > alone.peak_bytes
    assert (together.cases_at_a_time, narrow.cases_at_a_time) == (2, 1)
    assert narrow.peak_bytes == alone.peak_bytes


def test_a_limit_of_the_process_does_not_bind_a_network_on_a_gpu() -> None:
    on_gpu = replace(WINDOWS, is_on_host=False)

    found = [forecast([size((300, 300, 300))], one, Room(process_bytes=4 * GIB)) for one in (WINDOWS, on_gpu)]

    assert found[0].network_bytes is not None
    assert found[1].network_bytes is None
    assert found[1].peak_bytes < found[0].peak_bytes


def test_a_volume_is_streamed_on_a_gpu_whatever_the_process_may_allocate() -> None:
    assert HUNGRY.streaming is not None
    on_gpu = replace(HUNGRY, is_on_host=False, streaming=replace(HUNGRY.streaming, is_on_host=False))

    found = [forecast([size((400, 400, 400))], one, Room(process_bytes=3 * GIB)) for one in (HUNGRY, on_gpu)]

    assert [one.cases[0].way for one in found] == [Way.WINDOWS, Way.STREAMING]


def test_what_too_little_memory_changes_is_told() -> None:
    pair = [size((300, 300, 300), "one"), size((300, 300, 300), "other")]
    alone, together = (forecast(pair, STREAMING, Room(cases_at_a_time=count)) for count in (1, 2))
    between = (alone.peak_bytes + together.peak_bytes) // 2

    slow = summary(forecast(pair, STREAMING, Room(machine_bytes=between, cases_at_a_time=2)))
    tight = summary(forecast([size((400, 400, 400)), size((60, 60, 60))], HUNGRY, Room(3 * GIB, cases_at_a_time=2)))

    assert summary(together).endswith(" of disk.")
    assert slow.endswith("; one at a time in a process, since memory does not hold two.")
    assert "; 1 of them in windows, since memory is too small to stream, which changes labels a little" in tight


def test_what_a_batch_will_need_is_told_in_one_line() -> None:
    found = forecast([size((200, 200, 200))], STREAMING, Room(outputs=(Output.NIFTI, Output.PREVIEW)))

    assert summary(found) == "1 case, about 4 s, 0.8 GiB of memory, at most 1 MiB of disk."


def save(path: Path, shape: tuple[int, int, int], dtype: type = np.int16) -> Case:
    """Write a volume with a bright ball in the middle, without the air around a body."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    voxels = np.random.default_rng(0).integers(-100, 100, shape, dtype=np.int16)
    voxels[sum(axis**2 for axis in axes) < 0.3] += 400
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(dtype), AFFINE), path)
    return Case(path.name.removesuffix(".nii.gz"), path)


@pytest.fixture(scope="module")
def threshold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bright")


def setup(bundle: Path, out: Path, **asked: Any) -> Setup:
    return setup_of(bundle, out, Options((Output.NIFTI, Output.PREVIEW), **asked))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "shape"),
    [("threshold", (256, 256, 200)), ("hippocampus", (35, 51, 35))],
    ids=["large, windows", "small, streaming"],
)
def test_memory_is_as_foretold(tmp_path: Path, threshold: Path, bundle: str, shape: tuple[int, int, int]) -> None:
    case = save(tmp_path / "case.nii.gz", shape)
    planned = setup(threshold if bundle == "threshold" else HIPPOCAMPUS, tmp_path / "out")

    foretold = preflight([case], planned)
    worker = WorkerProcess()
    report = worker.submit(work, CaseJob(case, planned, tmp_path / "out" / "scratch")).result().report
    worker.shutdown()

    assert report is not None
    assert report.status == "done", report.findings
    assert foretold.peak_bytes / MIB == pytest.approx(report.peak_mib, rel=0.25)
    written = sum(path.stat().st_size for path in (tmp_path / "out" / "scratch").rglob("*") if path.is_file())
    assert foretold.is_tried
    assert written == pytest.approx(foretold.disk_bytes, rel=0.05)


def test_a_case_that_takes_long_is_not_tried_and_its_disk_is_a_bound(
    tmp_path: Path, threshold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxelgate.segmentation.batch.forecast.sample.TRIED_S", 0.0)
    case = save(tmp_path / "case.nii.gz", (64, 64, 64))
    planned = setup(threshold, tmp_path / "out")

    (found,) = sample(planned, [case])

    assert found.measured.written is None


@pytest.mark.slow
def test_attention_maps_are_in_the_forecast(tmp_path: Path) -> None:
    case = save(tmp_path / "case.nii.gz", (35, 51, 35))
    plain, gated = (
        setup_of(HIPPOCAMPUS, tmp_path / "out", Options((Output.NIFTI,), attention=levels))
        for levels in ((), attention_of(HIPPOCAMPUS))
    )

    assert preflight([case], gated).disk_bytes > 2 * preflight([case], plain).disk_bytes


@pytest.mark.slow
def test_cases_that_do_not_fit_are_named_and_the_others_are_foretold(tmp_path: Path, threshold: Path) -> None:
    cases = [save(tmp_path / f"{name}.nii.gz", (n, n, n)) for name, n in (("one", 32), ("other", 33), ("huge", 240))]

    found = preflight(cases, setup(threshold, tmp_path / "out", max_memory_gib=0.7))

    assert [case.case_id for case in found.cases] == ["one", "other"]
    assert found.unfit.keys() == {"huge"}
    assert found.peak_bytes <= 0.7 * GIB
    assert summary(found).endswith("of disk; 1 more does not fit in memory.")


@pytest.mark.slow
def test_cases_of_which_memory_does_not_hold_two_are_done_one_at_a_time_with_equal_results(
    tmp_path: Path, threshold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [save(tmp_path / "in" / f"{name}.nii", (128, 128, 128)) for name in "ab"]
    free, limited = (setup(threshold, tmp_path / name, max_memory_gib=64) for name in ("free", "limited"))
    together = preflight(cases, free)
    monkeypatch.setattr(
        "voxelgate.segmentation.batch.forecast.preflight.free_bytes", lambda: together.peak_bytes - 12 * MIB
    )

    line, planned, _ = foretell(cases, limited)
    peak_bytes, most = preflight(cases, limited).peak_bytes, 0
    for report in segment_cases([cases], planned):
        assert report.status == "done", report.findings
        most = max(most, status(tmp_path / "limited").counts["running"] + 1)
    list(segment_cases([cases], free))

    assert (together.cases_at_a_time, planned.cases_at_a_time, most) == (2, 1, 1)
    assert peak_bytes <= together.peak_bytes - 12 * MIB
    assert "one at a time" in line
    assert tree(tmp_path / "limited") == tree(tmp_path / "free")


@pytest.mark.slow
def test_what_is_done_is_not_foretold_again(tmp_path: Path, threshold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [save(tmp_path / f"{name}.nii.gz", (32, 32, 32)) for name in ("a", "b", "c")]
    planned = setup(threshold, tmp_path / "out", workers="serial")
    list(segment_cases([cases[:2]], planned))

    left = preflight(cases, planned)
    list(segment_cases([cases], planned))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(2**30, 2**30, 0))
    nothing = preflight(cases, planned)
    (tmp_path / "torn.nii.gz").write_bytes(b"no image")
    torn = preflight([*cases, Case("torn", tmp_path / "torn.nii.gz")], planned)

    assert [case.case_id for case in left.cases] == ["c"]
    assert summary(left).endswith("; 2 more are done already.")
    assert summary(nothing) == "All cases are done already."
    assert summary(torn).endswith("none of the first images could be tried; 3 more are done already.")
    with pytest.raises(OutputError, match="make room"):
        preflight(cases, replace(planned, options=Options((Output.NIFTI,))))  # other options, so all anew


@pytest.mark.slow
def test_more_processes_than_memory_holds_are_refused_with_the_number_that_fits(
    tmp_path: Path, threshold: Path
) -> None:
    case = save(tmp_path / "case.nii.gz", (32, 32, 32))

    with pytest.raises(UsageError, match=r"^9999 processes of 0\.\d GiB each .* pass --engine processes:[1-9]"):
        preflight([case], setup(threshold, tmp_path / "out", workers="processes:9999"))


@pytest.mark.slow
def test_a_full_disk_is_refused_before_any_work(
    tmp_path: Path, threshold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = save(tmp_path / "case.nii.gz", (32, 32, 32))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(2**30, 2**30, 0))

    with pytest.raises(OutputError, match="but out has 0 MiB of free disk; make room"):
        preflight([case], setup(threshold, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_cannot_be_read_is_left_to_its_report(tmp_path: Path, threshold: Path) -> None:
    sound = save(tmp_path / "sound.nii.gz", (32, 32, 32))
    flat = save(tmp_path / "flat.nii.gz", (32, 32, 30))
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 30), np.int16), AFFINE), tmp_path / "flat.nii.gz")
    (tmp_path / "torn.nii.gz").write_bytes(b"no image")
    broken = [Case("torn", tmp_path / "torn.nii.gz"), Case("nothing", None, ("has no images.",))]

    some = preflight([*broken, flat, sound], setup(threshold, tmp_path / "out"))
    none = preflight(broken, setup(threshold, tmp_path / "out"))

    assert [case.case_id for case in some.cases] == ["flat", "sound"]
    assert summary(none) == "What it will need is not known: none of the first images could be tried."


@pytest.mark.slow
def test_a_dicom_series_is_foretold_from_its_headers(tmp_path: Path, threshold: Path) -> None:
    write_all(stack(np.arange(8 * 40 * 50, dtype=np.int16).reshape(8, 40, 50) % 2000), tmp_path / "series")
    planned = setup_of(threshold, tmp_path / "out", Options((Output.NIFTI, Output.SEG, Output.SR)))

    found = preflight(cases_in([tmp_path / "series"], planned).cases, planned)

    assert len(found.cases) == 1
    assert found.cases[0].disk_bytes > 8 * 40 * 50 / 8


@pytest.mark.slow
def test_a_case_that_ends_the_process_of_the_sample_ends_nothing_else(tmp_path: Path) -> None:
    bundle = make_moody_bundle(tmp_path / "moody")
    deadly = Case("deadly", save_case(tmp_path / "deadly.nii.gz", DEADLY_HU))
    sound = Case("sound", save_case(tmp_path / "sound.nii.gz"))

    found, expected = (preflight([one], setup(bundle, tmp_path / "out")) for one in (deadly, sound))

    assert found.cases == ()
    assert len(expected.cases) == 1


@pytest.mark.parametrize("name", ["case.nii.gz", "CASE.NII.GZ", "case.nii", "case.mha", "case.nrrd"])
def test_headers_of_every_format_are_understood(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16)), str(tmp_path / "written.nii.gz"))
    if name.lower().endswith(".nii.gz"):
        (tmp_path / "written.nii.gz").rename(path)
    else:
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "written.nii.gz")), str(path))

    volume = volume_of(Case("case", path))

    assert volume is not None
    assert volume[0].shape == (6, 5, 4)
    assert volume[1] == (np.int16 if is_nifti(path) else np.float32)


def test_a_scaled_image_counts_as_the_numbers_it_becomes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "case.nii.gz")

    volume = volume_of(Case("case", tmp_path / "case.nii.gz"))

    assert volume is not None
    assert volume[1] == read_volume(tmp_path / "case.nii.gz")[0].dtype == np.float64


@pytest.mark.slow
def test_a_case_that_does_not_fit_is_refused_and_the_others_are_done(tmp_path: Path, threshold: Path) -> None:
    cases = [save(tmp_path / f"{name}.nii.gz", (n, n, n)) for name, n in (("one", 32), ("huge", 240))]

    limited = setup(threshold, tmp_path / "out", max_memory_gib=0.7)
    line, planned, refused = foretell(cases, limited)
    free = replace(planned, options=replace(planned.options, max_memory_gib=None))
    reports = {report.case_id: report for report in segment_cases([cases], free, refused)}

    assert "1 case, about" in line
    assert reports["one"].status == "done", reports["one"].findings
    assert reports["huge"].status == "rejected"
    assert str(reports["huge"].findings[0]).startswith("huge: needs ")
