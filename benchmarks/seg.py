"""Time writing a DICOM SEG of a full-size CT, re-read and compare included: label map with RLE against bit planes.

Run from the root of the project: `python -m benchmarks.seg --help`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.derived_cases import TABLE, ellipsoids, from_file, headers_of, segmented, source_grid
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.write.seg import SegKind, write_seg


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    grid = source_grid((512, 512, asked.slices))
    names = ("background", *(f"s{n}" for n in range(1, asked.segments + 1)))
    table = LabelTable(names, tuple((value, TABLE.coding(1)) for value in range(1, len(names))))
    case = segmented(
        ellipsoids(grid.shape, asked.segments), grid, [from_file(header) for header in headers_of(grid)], table
    )
    seconds: dict[SegKind, list[float]] = {kind: [] for kind in SegKind}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.repeats):
            for kind in SegKind:
                path = Path(folder) / f"{kind}.dcm"
                start_s = time.perf_counter()
                write_seg(path, case, kind=kind, overwrite=True)
                seconds[kind].append(time.perf_counter() - start_s)
                sizes[kind] = path.stat().st_size
    print("| kind | seconds | MB |\n|---|---|---|")
    for kind in SegKind:
        print(f"| {kind} | {statistics.median(seconds[kind]):.1f} | {sizes[kind] / 1e6:.1f} |")


if __name__ == "__main__":
    main()
