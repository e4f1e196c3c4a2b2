"""How many voxels a resampled image has, and whether one of its axes is resampled apart from the others."""

from collections.abc import Sequence

from voxelgate.core.errors import InputError

ANISOTROPY = 3.0
"""An axis whose voxels are longer than this many times those of another is resampled apart (`ANISO_THRESHOLD`)."""


def resized_shape(shape: Sequence[int], current_mm: Sequence[float], new_mm: Sequence[float]) -> tuple[int, ...]:
    """Return how many voxels there are along each axis after resampling (`compute_new_shape`).

    Args:
        shape: voxels now.
        current_mm: spacing now, as the header of the file has it: a number that is half a voxel off is rounded to even.
        new_mm: spacing then.

    Raises:
        InputError: less than half a voxel would be left of an axis.

    >>> resized_shape((10, 21, 7), (0.75, 0.75, 3.0), (1.5, 1.5, 1.5))
    (5, 10, 14)
    """
    found = tuple(round(have / want * n) for have, want, n in zip(current_mm, new_mm, shape, strict=True))
    if min(found) < 1:
        raise InputError(
            f"an image of {' x '.join(map(str, shape))} voxels has less than half a voxel of "
            f"{' x '.join(f'{size:g}' for size in new_mm)} mm along an axis; the network needs a larger image."
        )
    return found


def separate_axis(
    current_mm: Sequence[float], new_mm: Sequence[float], *, force: bool | None, above: float = ANISOTROPY
) -> int | None:
    """Return the axis that is resampled apart from the others, or None (`determine_do_sep_z_and_axis`).

    Args:
        current_mm: spacing before resampling.
        new_mm: spacing after it.
        force: True for the longest axis of the current voxels whatever their shape, False for none, None to decide by
            the spacings, the current one first.
        above: ratio of the longest to the shortest axis of a voxel from which on it counts as anisotropic.

    >>> separate_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), force=None)
    0
    >>> separate_axis((5.0, 1.0, 5.0), (1.0, 1.0, 1.0), force=None) is None  # two long axes: none is apart
    True
    """
    if force is not None:
        return _only_longest(current_mm) if force else None
    for spacing in (current_mm, new_mm):
        if max(spacing) / min(spacing) > above:
            return _only_longest(spacing)
    return None


def _only_longest(spacing_mm: Sequence[float]) -> int | None:
    longest = max(spacing_mm)
    axes = [axis for axis, size in enumerate(spacing_mm) if longest / size == 1]
    return axes[0] if len(axes) == 1 else None
