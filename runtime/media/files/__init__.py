"""Pictures read and videos written."""
