"""Read and validate datasets; mixes; the sandbox world."""
