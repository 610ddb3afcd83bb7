"""Models on disk: what is refused, what is counted, and that a saved folder is what was in memory."""

from pathlib import Path

import pytest

from tasks.shared.errors import ModelError
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.generation import plain_greedy, write_answers
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.prompts import render
from tasks.shared.model.saving import save_model
from tasks.shared.model.sizes import parameter_count, weight_bytes
from tasks.shared.model.template_edits import CHATML
from tasks.shared.model.weights import check_source
from tests.tiny_llama import build_model, save_tiny
from tests.tiny_tokenizers import gemma_of_a_gguf, llama3_like, sentencepiece_like


def test_missing_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        check_source(tmp_path / "absent")
    with pytest.raises(ModelError, match="config.json"):
        check_source(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a GGUF"):
        check_source(tmp_path / "model.gguf")


@pytest.mark.parametrize("offline", [False, True])
def test_a_saved_tokenizer_does_not_tell_how_it_was_loaded(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import tokenization_utils_base

    monkeypatch.setattr(tokenization_utils_base, "is_offline_mode", lambda: offline)
    load_tokenizer(save_tiny(tmp_path / "model")).save_pretrained(tmp_path / "saved")
    written = (tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8")
    assert "local" not in written


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match="safe_serialization"):
        check_source(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    import torch

    model = build_model()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(
        ModelError, match=r"2 tensors with NaN or infinite values \(model.layers.1.mlp.down_proj.weight"
    ):
        load_model(save_tiny(tmp_path / "model", model))


def test_a_saved_model_is_the_one_in_memory(tmp_path: Path) -> None:
    import torch

    model = build_model()
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = model(ids).logits
    after = load_model(save_tiny(tmp_path, model))
    with torch.inference_mode():
        assert torch.equal(before, after(ids).logits)


def test_all_ways_to_end_a_turn_are_kept_if_the_tokenizers_is_among_them(tmp_path: Path) -> None:
    for stops, saved in (([2, 5], [2, 5]), ([5, 6], 2), (5, 2)):
        model = build_model()
        model.generation_config.eos_token_id = stops
        assert load_model(save_tiny(tmp_path / str(saved) / str(stops), model)).generation_config.eos_token_id == saved


def test_parameters_are_counted_without_loading(tmp_path: Path) -> None:
    model = build_model()
    folder = save_tiny(tmp_path, model)
    assert parameter_count(folder) == sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(folder) > 4 * parameter_count(folder)
    with pytest.raises(ModelError, match="no weights"):
        parameter_count(tmp_path / "nothing")


def test_batched_generation_equals_one_by_one(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = [
        render(tokenizer, [{"role": "user", "content": text}])
        for text in ("postage", "returns are accepted within 45 days", "kettle's")
    ]
    together = write_answers(model, tokenizer, prompts, 8, batch_size=3)
    assert together == [write_answers(model, tokenizer, [prompt], 8)[0] for prompt in prompts]


def test_an_answer_ends_by_itself_or_at_the_limit(tmp_path: Path) -> None:
    model, tokenizer = load_model(save_tiny(tmp_path)), load_tokenizer(tmp_path)
    prompt = render(tokenizer, [{"role": "user", "content": "postage"}])
    (cut,) = write_answers(model, tokenizer, [prompt], 3)
    assert not cut.ended
    first = int(model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        first,
    ]  # as models do that end a turn otherwise than a text
    (ended,) = write_answers(model, tokenizer, [prompt], 3)
    assert ended.ended


def test_a_template_that_takes_no_system_turn_is_an_error_of_the_model(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tiny(tmp_path))
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(ModelError, match="turns of system, user: no system role"):
        render(tokenizer, [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.add_tokens([])
    text = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "<|done|>")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace("<|im_end|>", "<|done|>")
    )
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(folder)


TALK = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nI am a default.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
OTHER = "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}<|im_end|>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + OTHER


@pytest.mark.parametrize(
    ("template", "taken"), [(OTHER, OTHER), (NO_SYSTEM, NO_SYSTEM), (DEFAULT, CHATML), (CHATML, CHATML)]
)
def test_a_gguf_is_read_in_its_own_template(tmp_path: Path, template: str, taken: str) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    tokenizer = load_tokenizer(tmp_path / "model.gguf")
    assert tokenizer.chat_template == taken and tokenizer.eos_token == "<|im_end|>"
    if template != NO_SYSTEM:
        assert render(tokenizer, TALK) == render(load_tokenizer(folder), TALK), "as its folder, and as llama.cpp"


def test_a_gguf_without_a_template_is_read_in_chatml(tmp_path: Path) -> None:
    whole, bare = tmp_path / "whole.gguf", tmp_path / "bare.gguf"
    write_gguf(save_tiny(tmp_path / "model"), whole, "f16")
    bare.write_bytes(whole.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_leftover"))
    assert load_tokenizer(bare).chat_template == CHATML


@pytest.mark.parametrize("offline", [True, False])
def test_a_saved_tokenizer_does_not_tell_whether_the_network_was_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    load_tokenizer(save_tiny(tmp_path / "model")).save_pretrained(tmp_path / "saved")
    assert "local_files_only" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_greedy_means_greedy_whatever_the_generation_config_says(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = [render(tokenizer, [{"role": "user", "content": "returns are accepted, are accepted within 45 days"}])]
    plain = write_answers(model, tokenizer, prompts, 12)
    own = model.generation_config
    assert own is not None
    own.repetition_penalty, own.no_repeat_ngram_size, own.eos_token_id = 5.0, 1, [2, 0]
    ids = tokenizer(prompts[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
    penalized = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert write_answers(model, tokenizer, prompts, 12) == plain
    assert tokenizer.decode(penalized[0, ids.shape[1] :], skip_special_tokens=True).strip() != plain[0].text
    with plain_greedy(model):
        assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config is own, "the model is as it was"


def test_a_tokenizer_that_is_another_when_read_back_is_not_saved(tmp_path: Path) -> None:
    for fine in (llama3_like(), sentencepiece_like(), sentencepiece_like(prefix=True)):
        save_model(build_model(), fine, tmp_path / "fine")
    with pytest.raises(ModelError, match=r"(?s)GemmaTokenizer.*original Hugging Face folder"):
        save_model(build_model(), gemma_of_a_gguf(), tmp_path / "lost")


def test_a_gguf_is_parsed_once_a_load_and_read_as_transformers_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    file = tmp_path / "model.gguf"
    write_gguf(save_tiny(tmp_path / "model"), file, "q8_0")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    done: list[str] = []
    start, table = gguf.gguf_reader.GGUFReader.__init__, gguf.get_tensor_name_map
    monkeypatch.setattr(
        gguf.gguf_reader.GGUFReader, "__init__", lambda *given: (done.append("parsed"), start(*given))[1]
    )
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *given: (done.append("table"), table(*given))[1])
    own = gguf.GGUFReader
    quick = load_model(file)
    assert sorted(done) == ["parsed", "table"] and gguf.GGUFReader is own
    load_tokenizer(file)
    assert done.count("parsed") == 2
    weights = quick.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())
