"""SageSLA: block-sparse attention plus a linear branch."""
