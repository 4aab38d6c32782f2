"""The C extension; all else is in pyproject.toml, whose own table for extensions setuptools calls experimental."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "mixsize.ffcv_loaders.decode._jpegcrop",
            ["src/mixsize/ffcv_loaders/decode/jpegcrop.c", "src/mixsize/ffcv_loaders/decode/mapguard.c"],
            libraries=["jpeg", "m"],
            # The last two keep results the same on every machine and let comparisons be vectorised.
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-trapping-math"],
            # Where it cannot be built, the installation goes on, and FFCV's own decoder serves.
            optional=True,
        )
    ]
)
