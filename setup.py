"""The C extension; pyproject.toml holds everything else, but its table for extensions is still experimental."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "mixsize.ffcv_loaders.decode._jpegcrop",
            ["src/mixsize/ffcv_loaders/decode/jpegcrop.c"],
            libraries=["jpeg", "m"],
            # The last two keep results the same on every machine and let comparisons be vectorised.
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-trapping-math"],
        )
    ]
)
