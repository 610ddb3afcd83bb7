"""Prompts grouped by their beginnings: every prompt once, and as few tokens read as one common limit allows."""

import random

import pytest

from tasks.shared.model.prompt_groups import Group, batch_groups, group_prompts, shared_length, split_batch


def random_prompts(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    system = [1] * draw.randint(0, 4)
    passages = [[draw.randint(2, 9) for _ in range(draw.randint(1, 12))] for _ in range(4)]
    return [
        [*system, *draw.choice(passages), *(draw.randint(2, 9) for _ in range(draw.randint(1, 5)))] for _ in range(30)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_prompt_is_in_one_group_and_shares_its_beginning(seed: int) -> None:
    prompts = random_prompts(seed)
    groups = group_prompts(prompts)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(prompts)))
    for group in groups:
        beginnings = {tuple(prompts[row][: group.shared]) for row in group.rows}
        assert len(beginnings) == 1 and all(len(prompts[row]) > group.shared for row in group.rows)
        assert bool(group.shared) == (len(group.rows) > 1), "a prompt alone shares nothing"
    batches = batch_groups(groups, prompts, 4)
    assert sorted(row for batch in batches for group in batch for row in group.rows) == list(range(len(prompts)))
    assert all(sum(len(group.rows) for group in batch) <= 4 for batch in batches)
    for batch in batches:
        split = split_batch(batch, prompts)
        assert [group.rows for group in split] == [group.rows for group in batch]
        inside = [0 < group.shared < len(prompts[row]) for group in split for row in group.rows]
        assert all(inside) or not any(group.shared for group in split)


def test_the_passage_is_shared_rather_than_the_system_turn_alone() -> None:
    system, first, second = [1, 2], [3] * 8, [4] * 8
    prompts = [[*system, *passage, question] for question in (5, 6, 7) for passage in (first, second)]
    groups = group_prompts([*prompts, [1, 2, 8], [1, 2, 9]])
    assert sorted(groups, key=lambda group: group.rows) == [
        Group((0, 2, 4), 10),
        Group((1, 3, 5), 10),
        Group((6,)),
        Group((7,)),
    ]


def test_one_token_is_left_to_read() -> None:
    assert shared_length([1, 2, 3], [1, 2, 3]) == 2 and shared_length([1], [1]) == 0
    assert group_prompts([[1], [1]]) == [Group((0,)), Group((1,))] and group_prompts([]) == []


def test_a_prompt_alone_is_cut_without_padding_the_others() -> None:
    prompts = [[1] * 6 + [2, 3], [1] * 6 + [4, 5], [1] * 6 + [6, 7], list(range(9)), [6, 7]]
    batch = [Group((0, 1, 2), 6), Group((3,)), Group((4,))]
    assert split_batch(batch, prompts) == [Group((0, 1, 2), 6), Group((3,), 7), Group((4,), 1)]
    assert split_batch(batch, [*prompts[:4], [6]]) == [Group((0, 1, 2)), Group((3,)), Group((4,))]
    assert split_batch(batch[1:], prompts) == batch[1:]


def test_prompts_are_read_whole_where_padding_would_cost_more_than_sharing_saves() -> None:
    prompts = [[1] * 30 + [2, 3], [1] * 30 + [4, 5], [6, 6, *range(30)], [6, 6, *range(40, 70)]]
    batch = [Group((0, 1), 30), Group((2, 3), 2)]
    assert split_batch(batch, prompts) == [Group((0, 1)), Group((2, 3))]
    assert split_batch(batch[:1], prompts) == batch[:1]
