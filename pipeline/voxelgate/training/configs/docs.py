"""Texts that go with a bundle: its README, the licence of its data, its logging."""

from voxelgate.datasets.manifest import Modality
from voxelgate.images.spec import PICTURE_NAMES
from voxelgate.training.planning.explain import explain
from voxelgate.training.planning.plan import Plan

LOGGING_CONF = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""


def readme(plan: Plan) -> str:
    """Return the first part of `docs/README.md`; the results of a training follow it, with their commands."""
    labels = "\n".join(f"| {value} | {name} |" for value, name in plan.label_table.to_mapping().items())
    choices = "\n".join(f"| {row.name} | {row.value} | {row.reason} |" for row in explain(plan))
    image = f"one {plan.modality} volume"
    if plan.modality is Modality.PICTURE:
        image = f"one picture ({PICTURE_NAMES}), {'in colours' if plan.is_colour else 'grey'}, 8 or 16 bits"
    elif len(plan.image_channels) > 1:
        image = f"{len(plan.image_channels)} {plan.modality} volumes on one grid: {', '.join(plan.image_channels)}"
    return f"""\
# {plan.name}

{plan.description} For research; not a medical device.

| value | label |
|---|---|
{labels}

Input: {image}. Output: a label map on the very grid of the input.

## Commands

In the folder of the bundle:

```sh
python -m monai.bundle run --config_file configs/train.json --manifest M.json --data_root DATA
python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" \\
    --manifest M.json --data_root DATA
python -m monai.bundle run --config_file configs/inference.json --dataset_dir IN --output_dir OUT
torchrun --nproc_per_node 2 -m monai.bundle run \\
    --config_file "['configs/train.json','configs/multi_gpu_train.json']" --manifest M.json --data_root DATA
```

A training that was ended goes on with `--resume True`. Without it a new one begins, and nothing of an earlier one is
lost: its folder `training` becomes `training_1`, or the next free number, with a copy of the weights that the new
training replaces.

The weights are those of the epoch with the best Dice on the validation cases, so that their Dice on these very cases is
slightly optimistic; the measure of a bundle is its Dice on cases that chose nothing.

From anywhere, with checks before the work and progress while it runs: `voxelgate train`, `voxelgate evaluate` and
`voxelgate segment`.

## Why its numbers are so

`voxelgate plan` chose them from `fingerprint.json`, the facts of the training data; `plan.json` holds them all.

| choice | value | reason |
|---|---|---|
{choices}
"""


def data_licence(plan: Plan) -> str:
    """Return `docs/data_license.txt`."""
    name = plan.data.get("name", "unnamed data set")
    licence = plan.data.get("licence", "not stated; ask its owner")
    return f"Training data: {name}\nLicence: {licence}\n{plan.data.get('reference', '')}".rstrip() + "\n"
