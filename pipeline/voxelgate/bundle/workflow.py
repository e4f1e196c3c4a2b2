"""Read the configs of a bundle with overrides that count, and run its workflows."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser as ConfigParser  # noqa: PLC0414 - this is the only door to it
from monai.bundle import ConfigWorkflow
from monai.bundle.properties import InferProperties as InferProperties  # noqa: PLC0414
from monai.bundle.properties import TrainProperties as TrainProperties  # noqa: PLC0414

from voxelgate.core.errors import BundleError, UsageError, VoxelgateError, cause_of, reason_of


def read_configs(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Read configs of a bundle, later ones laid over earlier ones, with overrides that are known to count.

    Raises:
        BundleError: a config is missing or is no valid JSON.
        UsageError: an override names nothing in the configs, or has another type than the value there.
    """
    parser = ConfigParser()
    try:
        parser.read_config([str(_config(root, name)) for name in configs])
    except ValueError as error:
        raise BundleError(
            f"{root.name}: {' or '.join(configs)} is no valid JSON ({error}); restore the bundle"
        ) from error
    refuse_useless(parser, overrides)
    parser.update({"bundle_root": str(root), **overrides})
    return parser


def run_workflow(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Run a workflow of a bundle as `python -m monai.bundle run` does, but refuse overrides that change nothing.

    Args:
        root: the bundle's folder.
        configs: names below `configs/`, later ones laid over earlier ones, e.g. `("train", "evaluate")`.
        overrides: config ids and their values, e.g. `{"epochs": 5, "train#dataloader#num_workers": 2}`.

    Returns:
        The parser with everything that was built.

    Raises:
        BundleError: a config is missing or is no valid JSON, or what it describes cannot be built or run.
        UsageError: an override names nothing in the configs, or has another type than the value there.
    """
    read_configs(root, configs, overrides)
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it would say that it sets up no logging
    workflow = ConfigWorkflow(
        config_file=[str(_config(root, name)) for name in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(root),
        **overrides,
    )
    try:
        workflow.initialize()
        workflow.run()
    except (RuntimeError, ValueError, TypeError) as error:
        raise _as_ours(error, root) from error
    finally:
        workflow.finalize()
    return workflow.parser


def build_component(config: Mapping[str, Any]) -> Any:  # whatever the config describes
    """Build what a piece of config describes, as a bundle's parser would.

    >>> build_component({"_target_": "torch.nn.ReLU"})
    ReLU()
    """
    return ConfigParser({"it": dict(config)}).get_parsed_content("it")


def refuse_useless(config: ConfigParser, overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of ids that the config does not have, which MONAI would add and ignore, and of another type.

    Raises:
        UsageError: names the id and what may have been meant.
    """
    known = config_ids(config.get())
    for name in overrides:
        if name.replace("::", "#") not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(config.get()))}."
            raise UsageError(f"the bundle has no setting {name!r}; {hint}")
        _refuse_other_type(name, config.get(name.replace("::", "#")), overrides[name])


def _refuse_other_type(name: str, present: object, asked: object) -> None:
    """Refuse a text for a number and the like; expressions and empty values may become anything."""
    is_free = (
        present is None
        or (asked is None and isinstance(present, str))
        or any(isinstance(value, str) and value[:1] in ("$", "@") for value in (present, asked))
    )
    is_number = type(present) is float and type(asked) is int
    if not is_free and not is_number and type(asked) is not type(present):
        raise UsageError(
            f"setting {name} is {present!r} in the bundle, and {asked!r} is of another type; give such a value"
        )


def _as_ours(error: BaseException, root: Path) -> VoxelgateError:
    """Find our own error behind those that MONAI and ignite wrap around it, or word the innermost one."""
    if isinstance(cause := cause_of(error), VoxelgateError):
        return cause
    reason = reason_of(error)
    return BundleError(f"{root.name}: its workflow cannot run with these settings ({reason}); --debug shows where")


def _config(root: Path, name: str) -> Path:
    path = root / "configs" / f"{name}.json"
    if not path.is_file():
        raise BundleError(f"{root.name}: configs/{name}.json is missing; restore the bundle")
    return path


def config_ids(config: Any, prefix: str = "") -> set[str]:  # whatever JSON holds
    """Return every id of a config, such as `train#dataloader#num_workers`."""
    if isinstance(config, Mapping):
        children: list[tuple[str, Any]] = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        children = [(str(index), value) for index, value in enumerate(config)]
    else:
        return set()
    found: set[str] = set()
    for key, value in children:
        found |= {prefix + key} | config_ids(value, f"{prefix}{key}#")
    return found
