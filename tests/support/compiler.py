"""Whether this machine can compile the kernels that are compiled on demand."""

import os
import shutil

HAS_COMPILER = any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++")))
