"""How good a label map is: scores against a reference, and a review without one."""
