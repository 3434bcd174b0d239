"""What a user installs and reads."""
