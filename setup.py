"""The C extension; pyproject.toml holds everything else, but its table for extensions is still experimental."""

from setuptools import Extension, setup

_SOURCES = ("batch", "jpeg", "jpegwrite", "memory", "module", "normalize", "policy", "resize", "sources", "windows")

setup(
    ext_modules=[
        Extension(
            "mixsize.ffcv_loaders.engine._engine",
            [f"src/mixsize/ffcv_loaders/engine/{name}.c" for name in _SOURCES],
            depends=["src/mixsize/ffcv_loaders/engine/engine.h"],
            libraries=["jpeg", "m"],
            # -ffp-contract=off keeps results the same on every machine; the last two let loops be vectorised.
            extra_compile_args=[
                *("-O3", "-std=gnu11", "-fvisibility=hidden"),
                *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
            ],
        )
    ]
)
