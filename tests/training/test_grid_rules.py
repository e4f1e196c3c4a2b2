"""Spacing and patch: voxels fine enough for every structure, patches that see enough of each."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_planning import FACTS
from voxelgate.datasets.ceilings import COARSER, measure_ceilings, measure_width_mm
from voxelgate.datasets.manifest import Modality
from voxelgate.datasets.survey import Fingerprint, StructureFacts
from voxelgate.training.planning import Budget, Device, plan
from voxelgate.training.planning.grid_rules import (
    LEAST_CEILING,
    MOST_PATCH_VOX,
    at_factor,
    ceiling_at,
    choose_grid,
    patch_of,
    seen_share,
)
from voxelgate.training.planning.rules import ANISOTROPY

Three = tuple[float, float, float]

MRI = replace(FACTS, modality=Modality.MRI)
CPU = Budget(Device.CPU)


def structure(name: str, extent_mm: Three, width_mm: float, ceilings: tuple[float, ...]) -> StructureFacts:
    return StructureFacts(name, 20, (1, 2, 3), 0.3, 1, ((0, 1, 2, 3, 4),), extent_mm, width_mm, ceilings)


def facts_of(spacing_mm: Three, image_mm: Three, box_mm: Three, *structures: StructureFacts) -> Fingerprint:
    shape, box = (tuple(float(v) for v in np.array(sides) / spacing_mm) for sides in (image_mm, box_mm))
    return replace(MRI, spacing_mm=spacing_mm, shape_vox=shape, foreground_vox=box, structures=structures)


CEREBELLUM = structure("cerebellum", (108, 69, 60), 37, (0.99, 0.985, 0.975, 0.969, 0.956, 0.94))
WHITE_MATTER = structure("white matter", (130, 176, 108), 22, (0.982, 0.965, 0.923, 0.878, 0.795, 0.73))
AMYGDALA = structure("amygdala", (20, 14, 17), 7, (0.95, 0.915, 0.85, 0.73, 0.25, 0.1))
BRAIN = facts_of((1, 1, 1), (145, 185, 142), (137, 178, 128), CEREBELLUM, WHITE_MATTER, *[AMYGDALA] * 8)

VESSEL = structure("vessel", (918, 888, 1), 28, (0.992, 0.98, 0.949, 0.918, 0.875, 0.826))
RETINA = replace(facts_of((1, 1, 1), (999, 960, 1), (918, 888, 1), VESSEL), modality=Modality.PICTURE)

HIPPOCAMPUS = facts_of(
    (1, 1, 1), (35, 50, 35), (22, 39, 25), structure("posterior", (15, 23, 21), 7, (0.97, 0.94, 0.87, 0.75, 0.35, 0))
)
HEAD_AND_NECK = facts_of(
    (4.2, 4.2, 2.5),
    (457, 280, 287),
    (149, 174, 228),
    structure("mandible", (130, 116, 54), 18, (0.99, 0.925, 0.77, 0.55, 0, 0)),
    structure("cord", (23, 60, 174), 13, (0.985, 0.85, 0.56, 0.12, 0, 0)),
)


def atrium(spacing_mm: float) -> StructureFacts:
    """Return an organ of 102 x 58 x 36 mm with a wavy surface, measured in voxels of so many mm."""
    shape = [round(side / spacing_mm) for side in (102, 58, 36)]
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = x**2 + y**2 + z**2 <= 0.85 + 0.15 * np.cos(7 * x) * np.cos(5 * y)
    sides = (spacing_mm,) * 3
    return structure("atrium", (102, 58, 36), measure_width_mm(mask, sides), measure_ceilings(mask, (9, 9, 9), sides))


def test_an_organ_of_100_mm_in_fine_voxels_is_seen_whole() -> None:
    facts = facts_of((0.6, 0.6, 0.6), (360, 360, 110), (102, 58, 36), atrium(0.6))
    made = plan(facts, CPU)
    assert (np.array(made.patch_vox) * made.spacing_mm >= 0.9 * np.array((102, 58, 36))).all()
    assert 1.5 < made.spacing_mm[0] < 2.1
    assert np.prod(made.patch_vox) <= MOST_PATCH_VOX[Device.CPU]
    assert "of atrium, which is 102 x 58 x 36 mm large instead of 24 x 24 x 24 mm" in made.reasons["spacing_mm"]
    assert "would still reach a Dice of" in made.reasons["spacing_mm"]


def test_where_memory_allows_the_whole_organ_its_voxels_stay_fine() -> None:
    facts = facts_of((0.6, 0.6, 0.6), (360, 360, 110), (102, 58, 36), atrium(0.6))
    assert plan(facts, Budget(Device.GPU, memory_gb=80)).spacing_mm == (0.6, 0.6, 0.6)


@pytest.mark.parametrize("facts", [BRAIN, RETINA, HIPPOCAMPUS, HEAD_AND_NECK], ids=["brain", "retina", "hc", "hn"])
def test_data_whose_small_structures_or_texture_need_it_keep_their_spacing(facts: Fingerprint) -> None:
    assert plan(facts, CPU).spacing_mm == facts.spacing_mm


def test_what_a_patch_does_not_show_is_said() -> None:
    assert "a patch shows 40 x 40 x 40 mm of cerebellum" in plan(BRAIN, CPU).reasons["spacing_mm"]


def test_a_large_object_in_a_picture_is_seen_whole_too() -> None:
    lesion = structure("lesion", (1400, 1200, 1), 1200, (1.0, 1.0, 0.999, 0.998, 0.996, 0.994))
    facts = replace(facts_of((1, 1, 1), (3000, 2000, 1), (1400, 1200, 1), lesion), modality=Modality.PICTURE)
    made = plan(facts, CPU)
    assert made.spacing_mm[0] == made.spacing_mm[1] > 4
    assert (made.spacing_mm[2], made.patch_vox[2]) == (1, 1)


def test_a_small_structure_beside_a_large_one_keeps_its_ceiling() -> None:
    liver = structure("liver", (220, 160, 150), 120, (0.999, 0.998, 0.996, 0.99, 0.985, 0.98))
    lesion = structure("lesion", (8, 8, 8), 8, (0.99, 0.98, 0.93, 0.85, 0.4, 0.1))
    facts = facts_of((0.8, 0.8, 2.5), (400, 400, 300), (220, 160, 150), liver, lesion)
    alone, both = (choose_grid(one, CPU) for one in (replace(facts, structures=(liver,)), facts))
    assert both.facts.spacing_mm[0] < alone.facts.spacing_mm[0]
    assert ceiling_at(lesion, both.facts.spacing_mm[0] / 0.8) >= LEAST_CEILING


falling = st.lists(st.floats(0, 1), min_size=len(COARSER), max_size=len(COARSER)).map(
    lambda values: tuple(sorted(values, reverse=True))
)
lengths = st.tuples(*(st.floats(5, 600) for _ in range(3)))


@given(st.tuples(*(st.floats(0.3, 8) for _ in range(3))), lengths, st.floats(2, 200), falling, st.sampled_from(Device))
def test_any_choice_fits_the_device_and_leaves_every_structure_its_ceiling(
    spacing: Three, extent: Three, width: float, ceilings: tuple[float, ...], device: Device
) -> None:
    one = structure("organ", extent, min(width, *extent), ceilings)
    facts = facts_of(spacing, tuple(2 * side for side in extent), extent, one)
    chosen = choose_grid(facts, Budget(device))
    assert np.prod(chosen.patch_vox) <= MOST_PATCH_VOX[device]
    limit = min(chosen.facts.spacing_mm)
    for before, after in zip(spacing, chosen.facts.spacing_mm, strict=True):
        assert after == pytest.approx(before if before >= limit else limit, abs=0.001)
    assert ceiling_at(one, round(limit / min(spacing), 2)) >= LEAST_CEILING - 0.02
    native, _ = patch_of(facts, Budget(device))
    assert chosen.facts is facts or seen_share(one, facts, native) < 1


def test_facts_of_an_older_version_keep_their_spacing() -> None:
    assert plan(FACTS, CPU).spacing_mm == FACTS.spacing_mm


def test_later_rules_see_the_voxels_that_were_chosen() -> None:
    flat = structure("organ", (200, 200, 100), 90, (1.0, 1.0, 1.0, 1.0, 0.99, 0.99))
    facts = facts_of((0.5, 0.5, 1.5), (400, 400, 200), (200, 200, 100), flat)
    made = plan(facts, CPU)
    assert facts.spacing_mm[2] / facts.spacing_mm[0] >= ANISOTROPY
    assert made.spacing_mm[0] == made.spacing_mm[2]
    assert made.strides[0] == (2, 2, 2)


def test_boxes_and_images_are_counted_in_the_coarser_voxels() -> None:
    halved = at_factor(HEAD_AND_NECK, 2.0)
    assert halved.spacing_mm == (5.0, 5.0, 5.0)
    extents = [np.array(one.foreground_vox) * one.spacing_mm for one in (HEAD_AND_NECK, halved)]
    assert extents[0] == pytest.approx(extents[1], abs=1)
