"""What the writers of DICOM SEG, RTSTRUCT and SR share: the source series, the labels as its planes, safe files."""
