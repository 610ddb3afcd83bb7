"""What a narrower student takes: the largest scores, and no head without the key-value head that it was trained with."""

import torch

from tasks.prune.selection.activations import energy, measure
from tasks.prune.selection.picks import choose, choose_heads, highest, leading, rows_of
from tasks.prune.selection.shape import Shape, shape_of
from tests.tiny_llama import build_model

TEACHER = Shape(layers=2, hidden=8, intermediate=6, heads=6, kv_heads=3, head_dim=2)


def test_the_largest_are_taken_in_ascending_order_and_of_equal_ones_the_first() -> None:
    assert highest(torch.tensor([1.0, 9.0, 3.0, 9.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert highest(torch.tensor([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]


def test_rows_of_heads() -> None:
    assert rows_of(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_groups_with_the_best_heads_stay_whole_or_with_their_best() -> None:
    scores = torch.tensor([1.0, 8.0, 5.0, 5.0, 0.0, 7.0])  # groups of two: best 8, 5, 7; sums 9, 10, 7
    queries, kv_heads = choose_heads(scores, TEACHER, Shape(2, 8, 6, heads=2, kv_heads=2, head_dim=2))
    assert (queries.tolist(), kv_heads.tolist()) == ([1, 5], [0, 2])
    queries, kv_heads = choose_heads(scores, TEACHER, Shape(2, 8, 6, heads=4, kv_heads=2, head_dim=2))
    assert (queries.tolist(), kv_heads.tolist()) == ([0, 1, 2, 3], [0, 1])


def test_leading_takes_the_first_of_everything() -> None:
    for picks in choose(leading(TEACHER), TEACHER, Shape(2, 5, 4, heads=4, kv_heads=2, head_dim=2)):
        assert picks.hidden.tolist() == list(range(5)) and picks.neurons.tolist() == list(range(4))
        assert picks.heads.tolist() == [0, 1, 2, 3] and picks.kv_heads.tolist() == [0, 1]


def test_energy_is_the_sum_of_squares_of_real_tokens_by_part() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]]])
    assert energy(values, torch.tensor([[1, 0]]), 2).tolist() == [5.0, 25.0]


def test_parts_that_do_nothing_score_nothing_and_padding_does_not_count() -> None:
    model = build_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[7] = 0
        model.model.layers[2].self_attn.v_proj.weight[:16] = 0  # the first key-value head, of query heads 0 and 1
    ids = [[5, 6, 7, 8, 9], [10, 11]]
    scores, alone = (measure(model, shape_of(model.config), ids, size, 0) for size in (2, 1))
    assert scores.neurons[1, 7] == 0 and (scores.neurons[1] > 0).sum() == 127
    assert scores.heads[2].bool().tolist() == [False, False, True, True]
    torch.testing.assert_close(scores.hidden, alone.hidden, rtol=1e-4, atol=0)
    torch.testing.assert_close(scores.heads, alone.heads, rtol=1e-4, atol=0)
