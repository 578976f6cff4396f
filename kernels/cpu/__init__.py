"""C++ backends for the CPU."""
