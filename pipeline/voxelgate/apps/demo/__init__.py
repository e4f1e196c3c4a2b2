"""What `voxelgate demo` needs: a synthetic cohort with known truth, and the page that shows the result."""
