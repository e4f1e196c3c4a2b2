"""DICOM files in: scanned by their headers, grouped to series, decoded and stacked."""
