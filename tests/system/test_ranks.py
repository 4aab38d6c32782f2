"""A process's rank and its share of the cores, from the launcher's variables."""

from __future__ import annotations

from mixsize.system import ranks


def test_the_rank_is_the_launchers_and_zero_of_one_without_it(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ranks.process_rank() == (3, 8)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert ranks.process_rank() == (0, 1)


def test_the_ranks_of_a_machine_share_its_cores_and_each_has_one_at_least(monkeypatch):
    monkeypatch.setattr(ranks, "cores_at_hand", lambda: 8)
    for local_ranks, threads in (("1", 8), ("3", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_ranks)
        assert ranks.default_threads() == threads
