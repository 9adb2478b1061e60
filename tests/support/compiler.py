"""Whether this machine can compile the kernels."""

from unlearnkit_cpu_kernels.build import find_compiler

HAS_COMPILER = find_compiler() is not None
