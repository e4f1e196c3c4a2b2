"""Small folders of the make of TotalSegmentator's weights, with random weights, written here without nnU-Net."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.imports.nnunet_files import checkpoint, data_set, network, plans, write_folder
from voxelgate.bundle.imports.plans import read_plans

PARTS = {
    291: ("Dataset291_TotalSegmentator_part1_organs_1559subj", ("spleen", "kidney_right", "liver")),
    292: ("Dataset292_TotalSegmentator_part2_vertebrae_1532subj", ("sacrum", "vertebrae_L5")),
    293: ("Dataset293_TotalSegmentator_part3_cardiac_1559subj", ("heart", "aorta")),
    294: ("Dataset294_TotalSegmentator_part4_muscles_1559subj", ("skull",)),
    295: ("Dataset295_TotalSegmentator_part5_ribs_1559subj", ("rib_left_1", "sternum")),
}
EVERY = tuple(name for _, names in PARTS.values() for name in names)
ROUGH = {
    297: ("Dataset297_TotalSegmentator_total_3mm_1559subj", EVERY),
    298: ("Dataset298_TotalSegmentator_total_6mm_1559subj", EVERY),
}


def write_weights(
    root: Path,
    data_sets: Mapping[int, tuple[str, Sequence[str]]] = PARTS,
    *,
    trained: str = "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres",
    folds: Sequence[int] = (0,),
) -> Path:
    """Write folders of data sets with their structures, and return the folder that holds them."""
    for number, (name, structures) in data_sets.items():
        document = copy.deepcopy(plans(spacing=[1.5, 1.5, 1.5]))
        config = read_plans(document, "").configuration("3d_fullres", 1).network
        labels = {"background": 0, **{structure: value for value, structure in enumerate(structures, start=1)}}
        weights = {
            f"fold_{fold}/checkpoint_final.pth": checkpoint(
                network(config | {"in_channels": 1, "out_channels": len(labels)}, number + fold).state_dict(),
                trainer_name=trained.split("__", maxsplit=1)[0],
            )
            for fold in folds
        }
        write_folder(root / name / trained, plans=document, data_set=data_set(labels=labels), checkpoints=weights)
    return root
