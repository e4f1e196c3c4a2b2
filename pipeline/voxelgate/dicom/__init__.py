"""DICOM in and out: find series, say what is wrong with them, read them exactly, and write results that are re-read."""
