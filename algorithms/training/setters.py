"""Functions that set a training setting to a value: rates of dropout and stochastic depth, attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

#: Takes the value that holds from now on; None for the one that was configured.
Setter = Callable[[float | None], None]


def attribute_setter(target: object, name: str) -> Setter:
    """Returns a function that sets an attribute: that of an algorithm, of a loss.

    Args:
        target: what has the attribute.
        name: of the attribute; its value now is the configured one.

    Raises:
        AttributeError: ``target`` has no such attribute.

    Example:
        >>> loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> attribute_setter(loss, "label_smoothing")(0.2)
        >>> loss.label_smoothing
        0.2
    """
    configured = getattr(target, name)
    return lambda value: setattr(target, name, configured if value is None else value)


def dropout_setter(network: nn.Module, rate: float | None = None) -> Setter:
    """Returns a function that sets the network's dropout.

    The rates of all layers keep their proportions, so that layers of rate 0 stay without dropout. Sets
    ``torch.nn.Dropout`` and ``drop_rate``, which timm's networks drop with themselves.

    Args:
        network: made with dropout, in timm by ``drop_rate``.
        rate: that it was made with, which the value takes the place of; None for the highest of its layers.

    Raises:
        ValueError: it has none.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(8, 4))
        >>> dropout_setter(network)(0.3)
        >>> network[0].p
        0.3
    """
    sites: list[tuple[nn.Module, str]] = []
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            sites.append((module, "p"))
        if isinstance(getattr(module, "drop_rate", None), (int, float)):
            sites.append((module, "drop_rate"))
    return _in_proportion(sites, rate, "dropout", "drop_rate")


def drop_path_setter(network: nn.Module, rate: float | None = None) -> Setter:
    """Returns a function that sets the network's stochastic depth.

    The rates of all blocks keep their proportions: timm's rise in a line over the depth, in most networks to the rate
    that they are made with, in EfficientNets to a little less.

    Args:
        network: made by timm, or of timm's layers, with ``drop_path_rate``.
        rate: see :func:`dropout_setter`.

    Raises:
        ValueError: it has no stochastic depth.

    Example:
        >>> import timm
        >>> network = timm.create_model("resnet10t", drop_path_rate=0.3)
        >>> drop_path_setter(network)(0.1)
        >>> [round(block.drop_path.drop_prob, 3) for block in (network.layer2[0], network.layer4[0])]
        [0.033, 0.1]
    """
    from timm.layers.drop import DropPath  # timm takes a second to import, and plain loops need not have it.

    sites = [(module, "drop_prob") for module in network.modules() if isinstance(module, DropPath)]
    return _in_proportion(sites, rate, "stochastic depth", "drop_path_rate")


def _in_proportion(sites: Sequence[tuple[nn.Module, str]], rate: float | None, what: str, argument: str) -> Setter:
    own_rates = [(module, name, float(getattr(module, name))) for module, name in sites if getattr(module, name)]
    if not own_rates:
        raise ValueError(f"the network has no {what} to set; make it with {argument} above 0 (model.kwargs.{argument})")
    whole = rate or max(own for _, _, own in own_rates)

    def set_rates(value: float | None) -> None:
        for module, name, own in own_rates:
            setattr(module, name, own if value is None else value * (own / whole))

    return set_rates
