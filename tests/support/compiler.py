"""Whether this machine can compile the kernels that are compiled on demand."""

from unlearnkit_cpu_kernels.build import find_compiler

HAS_COMPILER = find_compiler() is not None
