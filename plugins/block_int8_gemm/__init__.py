"""W8A8 linear on 128×128 blocks, with its epilogues."""
