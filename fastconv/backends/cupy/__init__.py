"""CUDA kernels for CuPy's arrays; `fastconv.backends.cupy.backend` is the backend, the only file that needs a GPU."""
