"""What TotalSegmentator does for each of its tasks: facts of version 2.18.0.

They stand in its `map_tasks_config.py` (data sets, spacing, crop, folds), `map_to_binary.py` (labels that are dropped)
and `python_api.py` (which rough model crops; that its margin is 20 mm unless a task names a model of its own).
"""

from dataclasses import dataclass, replace

LUNGS = (
    "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)  # fmt: skip
NECK = ("clavicula_left", "clavicula_right", "vertebrae_C1", "vertebrae_C5", "vertebrae_T1", "vertebrae_T4")

OPEN_LICENCE = "Apache-2.0"
"""Of the weights that anybody may load."""

CLOSED_LICENCE = "TotalSegmentator licence (needs a licence number, which is free for non-commercial use)"


@dataclass(frozen=True)
class Crop:
    """The box that is segmented.

    Args:
        around: names of structures; none for those that are asked for.
        by: task that finds them roughly.
        margin_mm: by which the box is wider.
    """

    around: tuple[str, ...] = ()
    by: str = "total_fastest"
    margin_mm: float = 20.0


@dataclass(frozen=True)
class Task:
    """One of the tasks.

    Args:
        data_sets: numbers of those whose networks it runs, in the order in which their labels are joined.
        spacing_mm: of the images that the networks see, along x, y and z; none for that of the file.
        crop: what is segmented; None for the whole image.
        auxiliary: labels of the network that are dropped.
        is_overlapping_less: whether windows overlap by a fifth and not by half.
        has_all_folds: whether all folds are averaged and not only the first.
        licence: of its weights.
        refused: why it cannot be imported; empty if it can.
    """

    data_sets: tuple[int, ...]
    spacing_mm: tuple[float, ...] = ()
    crop: Crop | None = None
    auxiliary: tuple[int, ...] = ()
    is_overlapping_less: bool = False
    has_all_folds: bool = False
    licence: str = OPEN_LICENCE
    refused: str = ""


def _iso(spacing_mm: float) -> tuple[float, ...]:
    return (spacing_mm,) * 3


def _total(*data_sets: int, mm: float, by: str) -> Task:
    return Task(data_sets, _iso(mm), Crop(by=by), is_overlapping_less=True)


def _licensed(task: Task) -> Task:
    return replace(task, licence=CLOSED_LICENCE)


_BRAIN, _SKULL, _HEART, _LIVER = Crop(("brain",)), Crop(("skull",)), Crop(("heart",)), Crop(("liver",))
_MR_LIVER = Crop(("liver",), "total_mr_fast")
_FINE = (0.75, 0.75, 1.0)

TASKS: dict[str, Task] = {
    "total": _total(291, 292, 293, 294, 295, mm=1.5, by="total_fastest"),
    "total_fast": _total(297, mm=3.0, by="total_fastest"),
    "total_fastest": _total(298, mm=6.0, by="total_fastest"),
    "total_v3": _total(831, 832, 833, 834, 835, mm=1.5, by="total_fastest"),
    "total_v3_fast": _total(836, mm=3.0, by="total_fastest"),
    "total_v3_fastest": _total(837, mm=6.0, by="total_fastest"),
    "total_mr": _total(850, 851, mm=1.5, by="total_mr_fast"),
    "total_mr_fast": _total(852, mm=3.0, by="total_mr_fast"),
    "total_mr_fastest": _total(853, mm=6.0, by="total_mr_fast"),
    "body": Task((299,), _iso(1.5)),
    "body_fast": Task((300,), _iso(6.0)),
    "body_mr": Task((597,), _iso(1.5)),
    "body_mr_fast": Task((598,), _iso(6.0)),
    "lung_vessels": Task((117,), (0.703125, 0.703125, 1.0), Crop(LUNGS, "total_fast")),
    "lung_vessels_LEGACY": Task((258,), (), Crop(LUNGS)),
    "cerebral_bleed": Task((150,), (), _BRAIN),
    "hip_implant": Task((260,), (), Crop(("femur_left", "femur_right", "hip_left", "hip_right"))),
    "vertebrae_mr": Task((756,), _iso(1.5)),
    "pleural_pericard_effusion": Task((315,), (), Crop(LUNGS), has_all_folds=True),
    "liver_vessels": Task((8,), (), _LIVER),
    "head_glands_cavities": Task((775,), _FINE, _SKULL),
    "headneck_bones_vessels": Task((776,), _FINE, Crop(NECK)),
    "head_muscles": Task((777,), _FINE, _SKULL),
    "headneck_muscles": Task((778, 779), _FINE, Crop(NECK)),
    "oculomotor_muscles": Task((351,), (0.47251562774181366, 0.47251562774181366, 0.8500002026557922), _SKULL),
    "lung_nodules": Task((913,), _iso(1.5), Crop(LUNGS)),
    "kidney_cysts": Task(
        (789,), _iso(1.5), Crop(("kidney_left", "kidney_right", "liver", "spleen", "colon")), auxiliary=(3, 4)
    ),
    "breasts": Task((527,), _iso(1.5)),
    "ventricle_parts": Task((552,), (0.4384765625, 0.4345703125, 1.0), _BRAIN),
    "liver_segments": Task((570,), (0.8046879768371582, 0.8046879768371582, 1.5), _LIVER),
    "liver_segments_mr": Task((576,), (1.1250001788139343, 1.1875, 3.0), _MR_LIVER),
    "liver_lesions": Task((591,), _FINE, Crop(("liver",), "total_fast")),
    "liver_lesions_mr": Task((589,), (0.8603515625, 0.857421875, 1.0), _MR_LIVER),
    "craniofacial_structures": Task((115,), _iso(0.5), _SKULL),
    "abdominal_muscles": Task((952,), _FINE, Crop(("body_trunc",), "body_fast")),
    "teeth": Task((113,), _iso(0.5), refused="it looks where a task points that has a crop of its own"),
    "trunk_cavities": Task((343,), _iso(1.5)),
    "brain_aneurysm": Task((615,), (0.390625, 0.390625, 0.5000016391277313), has_all_folds=True),
    "vertebrae_body": Task((305,), _iso(1.5)),
    "vertebrae_pp": Task((803,), _iso(1.5), refused="it relabels vertebrae by rules of its own"),
    "heartchambers_highres": _licensed(Task((301,), (), refused="it removes what lies outside of a rough heart")),
    "appendicular_bones": _licensed(Task((304,), _iso(1.5), auxiliary=(12, 13, 14, 15))),
    "appendicular_bones_mr": _licensed(Task((855,), _iso(1.5))),
    "tissue_types": _licensed(Task((481,), _iso(1.5))),
    "tissue_types_mr": _licensed(Task((925,), _iso(1.5))),
    "tissue_4_types": _licensed(Task((485,), _iso(1.5))),
    "face": _licensed(Task((303,), _iso(1.5))),
    "face_mr": _licensed(Task((856,), _iso(1.5), auxiliary=(2, 3))),
    "brain_structures": _licensed(Task((409,), (0.5, 0.5, 1.0), _BRAIN)),
    "thigh_shoulder_muscles": _licensed(Task((857,), _iso(1.5))),
    "coronary_arteries": _licensed(Task((509,), _iso(0.7), _HEART)),
    "coronary_arteries_LEGACY": _licensed(Task((507,), _iso(0.7), _HEART)),
    "aortic_sinuses": _licensed(Task((920,), _iso(0.7), _HEART)),
    "renal_arteries": _licensed(Task((710,), _iso(1.5), auxiliary=(4,))),
    "aorta_annulus": _licensed(Task((713,), _iso(0.8), has_all_folds=True)),
    "aortic_dissection": _licensed(Task((716,), _iso(0.8), has_all_folds=True)),
    "pulmonary_artery_landmarks": _licensed(Task((514,), (0.7802734375, 0.7802734375, 1.0), has_all_folds=True)),
}

_FOLDERS = """
Dataset291_TotalSegmentator_part1_organs_1559subj Dataset292_TotalSegmentator_part2_vertebrae_1532subj
Dataset293_TotalSegmentator_part3_cardiac_1559subj Dataset294_TotalSegmentator_part4_muscles_1559subj
Dataset295_TotalSegmentator_part5_ribs_1559subj Dataset297_TotalSegmentator_total_3mm_1559subj
Dataset298_TotalSegmentator_total_6mm_1559subj Dataset831_TotalSegmentator_part1_organs_1830subj
Dataset832_TotalSegmentator_part2_vertebrae_1559subj Dataset833_TotalSegmentator_part3_cardiac_1830subj
Dataset834_TotalSegmentator_part4_muscles_1830subj Dataset835_TotalSegmentator_part5_ribs_1559subj
Dataset836_TotalSegmentator_total_3mm_1559subj Dataset837_TotalSegmentator_total_6mm_1559subj
Dataset850_TotalSegMRI_part1_organs_1088subj Dataset851_TotalSegMRI_part2_muscles_1088subj
Dataset852_TotalSegMRI_total_3mm_1088subj Dataset853_TotalSegMRI_total_6mm_1088subj Dataset299_body_1559subj
Dataset300_body_6mm_1559subj Dataset597_mri_body_139subj Dataset598_mri_body_6mm_139subj
Dataset117_lung_airways_arteries_veins_282subj Dataset258_lung_vessels_248subj Dataset150_icb_v0
Dataset260_hip_implant_71subj Dataset756_mri_vertebrae_1076subj Dataset315_thoraxCT Dataset008_HepaticVessel
Dataset775_head_glands_cavities_492subj Dataset776_headneck_bones_vessels_492subj Dataset777_head_muscles_492subj
Dataset778_headneck_muscles_part1_492subj Dataset779_headneck_muscles_part2_492subj
Dataset351_oculomotor_muscles_18subj Dataset913_lung_nodules Dataset789_kidney_cyst_501subj
Dataset527_breasts_1559subj Dataset552_ventricle_parts_38subj Dataset570_ct_liver_segments
Dataset576_mri_liver_segments_120subj Dataset591_ct_liver_lesions_842subj Dataset589_ct_mri_liver_lesions_750subj
Dataset115_mandible Dataset952_abdominal_muscles_167subj Dataset113_ToothFairy3 Dataset343_mediastinum_1786subj
Dataset615_MAXIMUS Dataset305_vertebrae_discs_1559subj Dataset803_TotalSegmentator_vertebrae_inner_1559subj
Dataset301_heart_highres_1559subj Dataset304_appendicular_bones_ext_1559subj
Dataset855_TotalSegMRI_appendicular_bones_1088subj Dataset481_tissue_1559subj Dataset925_MRI_tissue_subset_903subj
Dataset485_tissue_4types_1559subj Dataset303_face_1559subj Dataset856_TotalSegMRI_face_1088subj
Dataset409_neuro_550subj Dataset857_TotalSegMRI_thigh_shoulder_1088subj
Dataset509_coronary_arteries_cm_nativ_400subj_SKELETON Dataset507_coronary_arteries_cm_nativ_400subj
Dataset920_aortic_sinuses_cm_nativ_400subj Dataset710_renal_arteries_127subj Dataset713_annulus_proper_48subj
Dataset716_aorta_true_false_lumen_171subj Dataset514_annulus_pulmonary_70subj
"""

FOLDERS = frozenset(_FOLDERS.split())
"""Names of the folders in which TotalSegmentator keeps its weights."""
