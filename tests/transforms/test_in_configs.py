"""Every transform of voxelgate.transforms works alone in a MONAI config, in a cache and in a loader."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose

import voxelgate.transforms

KEYS = ["image", "label"]
CONFIGS = {
    "WindowHUd": {"keys": "image", "preset": "soft_tissue"},
    "NormalizeImaged": {"keys": "image", "nonzero": True, "low_percentile": 1, "high_percentile": 99},
    "Despeckled": {"keys": "image", "weight": 0.2},
    "ResampleToSpacingd": {"keys": KEYS, "spacing_mm": [1.0, 1.0, 1.5], "mode": ["bilinear", "nearest"]},
    "RandSideSafeFlipd": {
        "keys": KEYS,
        "label_key": "label",
        "axes": ["sagittal", 2],
        "side_pairs": [[1, 2]],
        "unpaired_sides": [],
        "prob": 0.5,
    },
    "NnUNetPreprocessd": {
        "keys": "image",
        "spacing": [3.0, 1.0, 0.8],
        "transpose_forward": [1, 0, 2],
        "normalization": [{"scheme": "ZScoreNormalization"}],
        "resampling": {"function": "resample_data_or_seg_to_shape", "order": 3, "order_z": 0, "force_separate_z": None},
        "label_key": "label",
    },
    "OrderDicomd": {"keys": KEYS, "axcodes": "LAS"},
    "ForegroundIndicesd": {"label_key": "label"},
    "RandBalancedPatchd": {"keys": KEYS, "label_key": "label", "patch_vox": [6, 6, 6], "foreground_probability": 0.5},
}
CHAIN = ("ResampleToSpacingd", "WindowHUd", "ForegroundIndicesd", "RandBalancedPatchd", "RandSideSafeFlipd")


def case(seed: int = 0) -> dict[str, MetaTensor]:
    rng = np.random.default_rng(seed)
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    image = torch.from_numpy(rng.uniform(1.0, 1000.0, (1, 10, 9, 6)).astype(np.float32))
    label = torch.from_numpy((rng.integers(0, 3, (1, 10, 9, 6))).astype(np.uint8))
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def from_config(*names: str) -> Compose:
    steps = [{"_target_": f"voxelgate.transforms.{name}", **CONFIGS[name]} for name in names]
    parser = ConfigParser({"chain": {"_target_": "Compose", "transforms": steps}})
    return parser.get_parsed_content("chain")


@pytest.mark.parametrize("name", CONFIGS)
def test_each_transform_works_from_a_config_and_leaves_its_argument_alone(name):
    data = case()
    before = {key: image.clone() for key, image in data.items()}

    result = from_config(name)(data)

    assert set(data) == set(KEYS)
    for key, image in before.items():
        assert torch.equal(data[key].as_tensor(), image.as_tensor())
        assert torch.equal(data[key].affine, image.affine)
        assert isinstance(result[key], MetaTensor)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_transform_refuses_a_missing_key_unless_it_may_be_missing(name):
    kind = getattr(voxelgate.transforms, name)
    refusing = kind(**CONFIGS[name])
    with pytest.raises(KeyError, match=r"image|label"):
        refusing({"other": 1})
    lenient = kind(**CONFIGS[name], allow_missing_keys=True)
    assert lenient({"other": 1}) == {"other": 1}


def test_an_image_without_its_label_map_is_cut_and_flipped_where_keys_may_be_missing():
    steps = [
        getattr(voxelgate.transforms, name)(**CONFIGS[name], allow_missing_keys=True)
        for name in ("RandBalancedPatchd", "RandSideSafeFlipd")
    ]
    assert Compose(steps)({"image": case()["image"]})["image"].shape == (1, 6, 6, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_chain_runs_in_a_cache_and_a_loader(workers):
    chain = from_config(*CHAIN).set_random_state(0)
    dataset = CacheDataset([case(seed) for seed in range(4)], chain, num_workers=0, progress=False)

    batches = list(DataLoader(dataset, batch_size=2, num_workers=workers))

    assert "label_indices" in dataset._cache[0]
    assert [tuple(batch["image"].shape) for batch in batches] == [(2, 1, 6, 6, 6)] * 2
    assert all(set(batch) == set(KEYS) for batch in batches)
    assert all(0.0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1.0 for batch in batches)


def test_images_prepared_as_by_nnunet_are_collated_with_the_spacing_of_their_sources():
    dataset = CacheDataset([case(seed) for seed in range(2)], from_config("NnUNetPreprocessd"), progress=False)

    (batch,) = DataLoader(dataset, batch_size=2)

    assert tuple(batch["image"].shape) == tuple(batch["label"].shape) == (2, 1, 3, 18, 12)
    assert batch["image"].meta["source_spacing"].tolist() == [[1.0, 3.0, 1.0]] * 2


def test_equal_seeds_give_equal_training_chains():
    first, second = (from_config(*CHAIN).set_random_state(3) for _ in range(2))
    for seed in range(4):
        one, other = first(case(seed)), second(case(seed))
        assert all(torch.equal(one[key].as_tensor(), other[key].as_tensor()) for key in KEYS)


def test_public_names_are_all_there():
    assert sorted(voxelgate.transforms.__all__) == sorted(set(voxelgate.transforms.__all__))
    assert all(hasattr(voxelgate.transforms, name) for name in voxelgate.transforms.__all__)
