"""``turbotrt selftest``: proof that a GPU's engines compute what they should, or a diagnosis, from one command."""

#: Seconds that a step may take before it counts as hanging: an export of 14B is the longest.
LIMIT = 900.0
