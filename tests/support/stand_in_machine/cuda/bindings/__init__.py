"""Found in place of cuda-python by a process whose path begins with this folder's parent; see stand_in_rtx.py."""
