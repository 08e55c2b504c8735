"""Our models through transformers: the same logits, texts, losses and initial weights as without it."""
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import mc
from mc.text.tokenizers import ByteTokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from mc.hf import MCCache, MCForCausalLM, MCHFConfig, export, from_mc  # noqa: E402
from mc.hf.cache import CACHE  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

MIXERS = {
    "grm": [mc.MCConfig(16, 2, segment_size=3)] * 2,
    "titans-ssc": [mc.MCConfig(16, 2, "titans", "ssc", segment_size=4, top_k=1, chunk_size=2)],
    "dla-fenwick": [mc.MCConfig(16, 2, "dla", "soup", "fenwick", segment_size=4, chunk_size=2)],
    "hybrid": [mc.MCConfig(16, 2, "swla", segment_size=4), mc.AttentionConfig(16, 2, window=5)],
}
each = pytest.mark.parametrize("name", MIXERS)
NEW = 6


@torch.no_grad()
def made(name):
    "A model in float64 whose next token depends on more than the last one."
    torch.manual_seed(0)
    model = MCForCausalLM(MCHFConfig(vocab_size=41, mixers=MIXERS[name])).double().eval()
    for block in model.model.blocks:
        block.mixer.out.weight.mul_(20)
    return model


def padded():
    "Two rows of nine columns, the second with four of padding on the left; their mask."
    ids = torch.randint(41, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


def generated(model, ids, mask, **options):
    options = dict(max_new_tokens=NEW, do_sample=False, pad_token_id=0) | options
    return model.generate(ids, attention_mask=mask, **options)


@each
def test_greedy_text_equals_ours_padded_on_either_side_and_in_pieces(name):
    model, (ids, mask) = made(name), padded()
    prompts = [ids[0].tolist(), ids[1, 4:].tolist()]
    ours = model.model.generate(prompts, NEW, temperature=0).all()
    assert generated(model, ids, mask)[:, 9:].tolist() == ours
    assert generated(model, ids, mask, prefill_chunk_size=2)[:, 9:].tolist() == ours
    right, right_mask = ids.clone(), mask.flip(1)
    right[1, :5] = ids[1, 4:]
    assert generated(model, right, right_mask)[:, 9:].tolist() == ours
    for prompt, row in zip(prompts, ours):  # one full pass a token
        for token in row:
            assert token == int(model(torch.tensor([prompt])).logits[0, -1].argmax())
            prompt.append(token)


@each
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}], ids=["beams", "samples"])
def test_a_cache_changes_no_beam_and_no_sample(name, options):
    model, (ids, mask) = made(name), padded()
    both, options = [], options | {"return_dict_in_generate": True, "output_scores": True}
    for use_cache in (True, False):
        torch.manual_seed(3)
        both.append(generated(model, ids, mask, use_cache=use_cache, **options))
    assert torch.equal(both[0].sequences, both[1].sequences)
    for one, other in zip(both[0].scores, both[1].scores):
        assert torch.allclose(one, other, atol=1e-5)


@each
def test_going_on_from_a_returned_cache(name):
    model, (ids, mask) = made(name), padded()
    whole = generated(model, ids, mask)
    first = generated(model, ids, mask, max_new_tokens=4, return_dict_in_generate=True)
    cache = first[CACHE]
    assert isinstance(cache, MCCache) and cache.get_seq_length() == 12
    assert cache.states.positions == [12, 8]
    seen = torch.cat([mask, torch.ones(2, 4, dtype=mask.dtype)], 1)
    for key in ("cache", "past_key_values"):
        own = {key: copy.deepcopy(cache)}
        assert torch.equal(generated(model, first.sequences, seen, max_new_tokens=NEW - 4, **own), whole)


def test_each_name_of_the_cache_is_used():
    model, (ids, _) = made("grm"), padded()
    whole = model(ids).logits
    for key in ("cache", "past_key_values"):
        box = MCCache()
        parts = [model(part, **{key: box}).logits for part in ids.split(4, 1)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)
        assert box.get_seq_length() == 9
    with pytest.raises(ValueError, match="two names of one thing"):
        model(ids, cache=MCCache(), past_key_values=MCCache())


@each
def test_saved_and_loaded(name, tmp_path):
    model, (ids, mask) = made(name), padded()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert isinstance(again, MCForCausalLM) and again.dtype == torch.float64
    assert AutoConfig.from_pretrained(tmp_path).lm == model.config.lm
    assert torch.allclose(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits, atol=1e-12)
    small = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert small(ids).logits.dtype == torch.bfloat16
    generated(small, ids, mask)


@each
def test_initial_weights_are_ours(name, tmp_path):
    config = MCHFConfig(vocab_size=41, mixers=MIXERS[name])
    torch.manual_seed(5)
    theirs = AutoModelForCausalLM.from_config(config).model.state_dict()
    torch.manual_seed(5)
    ours = mc.LanguageModel(config.lm).state_dict()
    for key in ours:
        assert torch.equal(theirs[key], ours[key]), key


@pytest.mark.parametrize("name", ["titans-ssc", "hybrid"])
def test_what_a_file_lacks_gets_our_initial_weights(name, tmp_path):
    from safetensors.torch import load_file, save_file

    model = MCForCausalLM(MCHFConfig(vocab_size=41, mixers=MIXERS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {k: t for k, t in load_file(file).items() if "coefficients" not in k and not k.endswith((".w1", "norm.weight"))}
    save_file(kept, file, {"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    fresh = mc.LanguageModel(model.config.lm).state_dict()
    for key, tensor in again.items():
        if key in kept:
            assert torch.equal(tensor, kept[key]), key
        elif "proj.weight" not in key:  # random
            assert torch.equal(tensor, fresh[key.removeprefix("model.")]), key
    assert any(key.endswith("proj.bias") for key in again.keys() - kept.keys())


def test_loss_shifts_and_leaves_out_what_is_masked():
    model, (ids, mask) = made("hybrid"), padded()
    labels = ids.masked_fill(mask == 0, -100)
    out = model(ids, attention_mask=mask, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    assert torch.allclose(out.loss, expected)


def test_gradients_with_checkpointing_are_the_same():
    model, (ids, mask) = made("titans-ssc").train(), padded()
    grads = []
    for again in (False, True):
        model._set_gradient_checkpointing(again, lambda f, *a: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=False))
        model.zero_grad()
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for key in grads[0]:
        assert torch.allclose(grads[0][key], grads[1][key], atol=1e-12), key


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("size", [50, 30])
def test_resized_embedding(size, mean, tmp_path):
    model = made("grm")
    ids = torch.arange(9)[None]
    before = model(ids).logits
    model.resize_token_embeddings(size, mean_resizing=mean)
    after, same = model(ids).logits, min(size, 41)
    assert after.shape[-1] == size and torch.allclose(after[..., :same], before[..., :same])
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == model.model.config.vocab_size == size
    model(torch.tensor([[size - 1]]))
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits.shape[-1] == size


def test_embeddings_hidden_states_and_some_logits():
    model, (ids, mask) = made("hybrid"), padded()
    out = model(ids, attention_mask=mask, output_hidden_states=True)
    assert [h.shape for h in out.hidden_states] == [(2, 9, 16)] * 3
    assert torch.allclose(out.hidden_states[-1] @ model.get_output_embeddings().weight.T, out.logits)
    assert torch.equal(model(ids, attention_mask=mask, logits_to_keep=3).logits, out.logits[:, -3:])
    assert torch.allclose(model(ids, attention_mask=mask, logits_to_keep=1).logits, out.logits[:, -1:])
    places = torch.tensor([1, 4])
    assert torch.allclose(model(ids, logits_to_keep=places).logits, model(ids).logits[:, places])
    embeds = model.get_input_embeddings()(ids)
    assert torch.allclose(model(inputs_embeds=embeds, attention_mask=mask).logits, out.logits)
    assert isinstance(model(ids, return_dict=False), tuple)


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(bf16, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = MCForCausalLM(MCHFConfig(vocab_size=32, num_layers=1, d_model=32, num_heads=2, segment_size=4))
    rows = [torch.arange(i, i + 12) % 32 for i in range(40)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    options = dict(max_steps=20, learning_rate=1e-2, logging_steps=10, save_steps=10, report_to=[], disable_tqdm=True)
    arguments = TrainingArguments(tmp_path, use_cpu=True, bf16=bf16, gradient_accumulation_steps=2, **options)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    assert last < first / 2
    again = Trainer(model=copy.deepcopy(model), args=arguments, train_dataset=data, eval_dataset=data[:8])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert abs(again.evaluate()["eval_loss"] - last) < 1e-5


@pytest.mark.slow
def test_exported_folder_in_the_three_ways(tmp_path):
    torch.manual_seed(0)
    ours = mc.LanguageModel(mc.LMConfig(257, 2, mc.MCConfig(16, 2, "titans", segment_size=4))).eval()
    ours.save(tmp_path / "run" / "model.safetensors")
    ByteTokenizer().save(tmp_path / "run" / "tokenizer.json")
    folder = export(tmp_path / "run", tmp_path / "folder", max_position_embeddings=64)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert words.model_max_length == model.config.max_position_embeddings == 64
    given = words(["A memory", "is"], padding=True, return_tensors="pt")
    text = words.batch_decode(model.generate(**given, max_new_tokens=8, do_sample=False)[:, 8:])

    run = [sys.executable, "-m", "mc", "generate", tmp_path / "run", "A memory", "is", "--json"]
    said = subprocess.run([*run, "--temperature", "0", "--max-new-tokens", "8"], capture_output=True, text=True, check=True)
    assert [json.loads(line)["text"] for line in said.stdout.splitlines()] == text

    program = (
        "import sys; sys.modules['mc'] = None; import torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(m.generate(torch.tensor([[*b'A memory']]), max_new_tokens=8, do_sample=False)[0, 8:].tolist())"
    )
    env = os.environ | {"HF_HOME": str(tmp_path / "home")}
    said = subprocess.run([sys.executable, "-c", program, folder], env=env, capture_output=True, text=True, check=True)
    assert words.decode(json.loads(said.stdout)) == text[0]


def test_from_mc_wraps_the_model_itself():
    ours = mc.LanguageModel(mc.LMConfig(257, 1, mc.MCConfig(16, 2))).half().eval()
    model, words = from_mc(ours, ByteTokenizer())
    assert model.model is ours and model.dtype == torch.float16 and not model.training
    assert model.config.eos_token_id == words.eos_token_id == 256


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: MCHFConfig(segmnt_size=3), "did you mean 'segment_size'"),
        (lambda: MCHFConfig(hidden_size=30), "multiple of num_heads"),
        (lambda: MCHFConfig(tie_word_embeddings=False), "tie_word_embeddings"),
        (lambda: MCHFConfig(mixer=mc.MCConfig(16, 2), top_k=3), "not both; got top_k"),
        (lambda: made("grm")(torch.zeros(2, 3, dtype=torch.long), attention_mask=torch.ones(2, 4)), "attention_mask must be"),
        (lambda: made("grm")(), "input_ids or inputs_embeds"),
        (lambda: made("grm")(torch.tensor([[41]])), "vocab_size - 1 = 40"),
        (lambda: made("grm").generate(torch.ones(1, 3).long(), cache_implementation="static"), "cache_implementation"),
        (lambda: made("grm")(torch.ones(1, 3).long(), cache=[]), "cache must be an MCCache"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_logarithmic_cannot_generate():
    mixer = mc.MCConfig(16, 2, segmentation="logarithmic")
    model = MCForCausalLM(MCHFConfig(vocab_size=41, num_layers=1, mixer=mixer)).eval()
    assert model(torch.arange(7)[None]).logits.shape == (1, 7, 41)
    with pytest.raises(ValueError, match="'fenwick' and 'constant' can generate"):
        model.generate(torch.arange(7)[None], max_new_tokens=3)


def test_assisted_decoding_is_refused_clearly():
    model, (ids, _) = made("grm"), padded()
    with pytest.raises((ValueError, NotImplementedError), match="crop"):
        model.generate(ids[:1], max_new_tokens=4, prompt_lookup_num_tokens=2, do_sample=False)
