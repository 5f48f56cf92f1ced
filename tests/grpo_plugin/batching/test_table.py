"""The numbers of which plans are made: equal on every rank, and read from the device once."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.table import Table, prompt_numbers


def padded_left(prompts: list[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def test_a_prompts_number_does_not_depend_on_its_padding_and_tells_prompts_apart() -> None:
    prompts = [[1, 2, 3], [3, 2, 1], [1, 2], [2, 3], [0, 1, 2, 3], [1, 2, 3, 0], [0], [0, 0]]
    narrow, wide = (prompt_numbers(*padded_left(prompts, width)).tolist() for width in (4, 9))
    assert narrow == wide
    assert len(set(narrow)) == len(prompts)
    assert min(narrow) >= 0


def test_the_numbers_of_many_prompts_that_differ_little_are_spread_over_all_bits() -> None:
    ids = torch.arange(20_000)[:, None].repeat(1, 3)
    ids[:, 1:] = torch.tensor([7, 150_000])
    numbers = prompt_numbers(ids, torch.ones_like(ids))
    assert len(set(numbers.tolist())) == 20_000
    for bit in range(63):
        assert 0.45 < ((numbers >> bit) & 1).double().mean() < 0.55, bit


def by_hand(ids: list[int]) -> int:
    """The number in Python's unbounded whole numbers, cut to 64 bits."""
    bits, total = 2**64 - 1, 0
    for place, token in enumerate(ids, start=1):
        value = (token * 0x9E3779B97F4A7C15 + place * 0xD1342543DE82EF95) & bits
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & bits
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & bits
        total += value ^ (value >> 31)
    return total & (2**63 - 1)


def test_signed_arithmetic_that_wraps_gives_the_unsigned_number() -> None:
    ids = torch.arange(12).reshape(3, 4) * 1_000
    assert prompt_numbers(ids, torch.ones_like(ids)).tolist() == [by_hand(row) for row in ids.tolist()]


class HostReads(TorchDispatchMode):
    """Counts the operations that wait for a device: single values and copies to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_table_is_read_from_the_device_as_a_whole() -> None:
    ids, mask = padded_left([[1, 2], [1, 2], [4]], 3)
    fields = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask.flip(1)}
    copies: list[int] = []

    class Counted(torch.Tensor):
        def cpu(self):  # type: ignore[no-untyped-def, override]
            copies.append(self.numel())
            return self.as_subclass(torch.Tensor)

    ranks = Ranks(0, 1, lambda value: value.as_subclass(Counted))
    with HostReads() as reads:
        table = Table.of(fields, len(ids), ranks)
    assert table is not None
    assert (reads.count, len(copies)) == (0, 1)
    assert table.rows.prompt_R[0] == table.rows.prompt_R[1] != table.rows.prompt_R[2]
    assert table.rows.completion_tokens_R.tolist() == [2, 2, 1]
