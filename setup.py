"""The compiled engine; pyproject.toml holds everything else, but its table for extensions is still experimental."""

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_SOURCES = (
    "batch",
    "jpeg",
    "jpegwrite",
    "memory",
    "normalize",
    "policy",
    "processor",
    "resize",
    "sources",
    "views",
    "windows",
)


class BuildLibrary(build_ext):
    """Builds a plain shared library: ``ctypes`` loads it, and nothing in it depends on Python."""

    def get_ext_filename(self, fullname):
        """``mixsize/ffcv_loaders/engine/_engine.so``, without the name of a Python."""
        return f"{fullname.replace('.', '/')}.so"


class AnyPython(bdist_wheel):
    """Tags the wheel for every Python 3 of the platform."""

    def get_tag(self):
        """``py3-none`` and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
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
    ],
)
