"""Errors of a rank whose partner is gone, told from all others."""

from __future__ import annotations

import pytest
import torch

from mixsize.recipes.callbacks.lost_ranks import naming_lost_ranks

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:38814"),
        RuntimeError(f"{GLOO}Read error [127.0.0.1]:54704: Connection reset by peer"),
        RuntimeError(f"{GLOO}writev [127.0.0.1]:54704: Broken pipe"),
        RuntimeError(f"{GLOO}Timed out waiting 300000ms for recv operation to complete"),
        torch.distributed.DistBackendError("ncclRemoteError: a network error or a remote process exiting prematurely."),
        torch.distributed.DistStoreError("Timed out after 301 seconds waiting for clients. 1/2 clients joined."),
        torch.distributed.DistNetworkError("Connection was likely closed. Did the remote server shutdown or crash?"),
    ],
    ids=["closed", "reset", "pipe", "silent", "nccl", "store", "network"],
)
def test_a_lost_rank_is_named_with_how_it_was_noticed(error):
    with (
        pytest.raises(ConnectionError, match=r"^another rank has ended, or does not answer") as raised,
        naming_lost_ranks(),
    ):
        raise error
    assert str(raised.value).endswith(str(error))
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}ifa != nullptr. Unable to find address for: eth0"),
        torch.distributed.DistBackendError("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1b000"),
        RuntimeError("the connection to the data base was closed by peer"),
        ValueError(f"{GLOO}Connection closed by peer"),
    ],
)
def test_another_error_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, naming_lost_ranks():
        raise error
    assert raised.value is error
