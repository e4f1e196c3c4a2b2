"""Run the command line as `python -m voxelgate`."""

from voxelgate.core.process import refuse_current_folder

refuse_current_folder()  # before anything is imported of which a file beside the images may have the name

from voxelgate.apps.cli.main import main  # noqa: E402

main()
