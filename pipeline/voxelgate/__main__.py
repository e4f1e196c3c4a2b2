"""Run the command line as `python -m voxelgate`."""

from voxelgate.apps.cli.main import main

main()
