"""The plugins as one C++ library, libturbotrt_plugins.so: its sources, and what builds it (``make native``)."""
