"""Every public name has an example that runs."""

from __future__ import annotations

import doctest
from collections.abc import Mapping

import pytest
import torch

from mixsize import algorithms


@pytest.mark.parametrize("name", algorithms.__all__)
def test_the_example_of_a_public_name_runs_as_written(name):
    value = getattr(algorithms, name)
    if isinstance(value, Mapping):
        return  # A constant has no docstring.
    names = {public: getattr(algorithms, public) for public in algorithms.__all__}
    example = doctest.DocTestParser().get_doctest(value.__doc__, {**names, "torch": torch}, name, None, None)
    assert "Example:" in value.__doc__
    assert example.examples
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
