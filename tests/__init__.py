"""The tests: folders mirror the rooms, support/ holds what they share."""
