"""The place of the CUDA backend; this version has no CUDA kernels."""

raise ImportError("this version of fastconv has no CUDA kernels")
