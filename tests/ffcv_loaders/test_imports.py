"""The loaders need little: FFCV and what it is built on stay with the benches, Composer with the algorithms."""

import subprocess
import sys

CODE = """
import sys
import mixsize.ffcv_loaders as loaders
for name in loaders.__all__:
    getattr(loaders, name)
print("mixsize.ffcv_loaders.loader" in sys.modules, {"composer", "cv2", "ffcv", "numba"} & sys.modules.keys())
"""


def test_no_public_name_imports_ffcv_numba_opencv_or_composer():
    done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "True set()\n"
