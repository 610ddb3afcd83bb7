"""The head in chunks: the same sums and gradients as at once, and no logits of the whole batch at any time."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tasks.shared.errors import TechniqueError
from tasks.shared.model.head import check_head, core_of, output_head, sum_over_chunks
from tests.tiny_llama import build_model


def score(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.stack([cross_entropy(logits, tokens, reduction="sum"), logits.square().sum()])


def results(elements: int) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50)
    hidden = torch.randn(23, 8, requires_grad=True)
    tokens = torch.randint(0, 50, (23,))
    largest = 0

    def head(states: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, states.shape[0])
        return layer(states)

    head.vocabulary = 50  # type: ignore[attr-defined]
    sums = sum_over_chunks(score, head, hidden, tokens, elements=elements)
    (sums[0] + 0.01 * sums[1]).backward()
    gradients = [hidden.grad, layer.weight.grad, layer.bias.grad]
    assert all(gradient is not None for gradient in gradients)
    return sums.detach(), gradients, largest  # type: ignore[return-value]


@pytest.mark.parametrize("elements", [50, 200, 50 * 22])
def test_chunks_add_up_to_the_whole(elements: int) -> None:
    sums, gradients, largest = results(elements)
    whole, expected, _ = results(10**9)
    torch.testing.assert_close(sums, whole)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert largest == elements // 50


def test_several_terms_can_be_differentiated_one_by_one() -> None:
    """Telemetry asks for each term's gradient before the loss's own."""
    layer = torch.nn.Linear(4, 10)
    hidden = torch.randn(9, 4, requires_grad=True)
    sums = sum_over_chunks(score, layer, hidden, torch.zeros(9, dtype=torch.long), elements=30)
    first = torch.autograd.grad(sums[0], hidden, retain_graph=True)[0]
    second = torch.autograd.grad(sums[1], hidden, retain_graph=True)[0]
    (sums[0] + sums[1]).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, first + second)


def test_no_tokens_are_a_zero_with_a_zero_gradient() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    layer = torch.nn.Linear(4, 10)
    sums = sum_over_chunks(score, layer, hidden, torch.zeros(0, dtype=torch.long))
    sums.sum().backward()
    assert not sums.any() and layer.weight.grad is not None and not layer.weight.grad.any()


@pytest.mark.parametrize(("name", "value"), [("logit_scale", 0.25), ("final_logit_softcapping", 3.0)])
def test_what_a_model_does_to_its_logits_is_done(name: str, value: float) -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    size: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 40, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    family: Any = (CohereConfig, CohereForCausalLM) if name == "logit_scale" else (Gemma2Config, Gemma2ForCausalLM)
    model = family[1](family[0](**size, **{name: value})).eval()
    model.get_output_embeddings().weight.data.normal_(std=2.0)
    ids = torch.arange(1, 7).view(1, -1)
    hidden = model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(output_head(model)(hidden), model(ids).logits)


def test_the_core_of_a_plain_model_is_itself() -> None:
    model = build_model()
    assert core_of(model) is model


def test_a_head_that_is_applied_otherwise_is_refused() -> None:
    from tests.families import FAMILIES

    model = FAMILIES["granite"].build()
    check_head(model)
    forward = model.forward
    model.forward = lambda *given, **named: doubled(forward(*given, **named))
    with pytest.raises(TechniqueError, match=r"GraniteForCausalLM: its logits are not the head's product .* by 50%"):
        check_head(model)


def doubled(output: Any) -> Any:
    output.logits = 2 * output.logits
    return output
