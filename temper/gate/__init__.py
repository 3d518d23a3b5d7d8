"""The gate: rules on what was measured of a candidate and its reference, and the verdict that follows."""
