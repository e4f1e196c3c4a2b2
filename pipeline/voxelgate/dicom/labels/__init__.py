"""What others have drawn on a series: DICOM SEG and RTSTRUCT as label maps on its grid."""
