"""Tokens as they come: greedy is the full pass, a row is what it is alone, and nothing is left behind."""
from itertools import product

import pytest
import torch

import mc
from mc.nn.backends import BACKENDS
from mc.nn.generation import Token, generate
from mc.nn.sampling import Sampling, likeliest, uniform
from mc.read.ways import AGGREGATIONS

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 1], [5, 6, 7, 8, 5]]
ATTENTION = mc.AttentionConfig(8, 2)


def memory(backend="linear", aggregation="grm", segmentation="constant", **options):
    return mc.MCConfig(8, 2, backend, aggregation, segmentation, segment_size=4, chunk_size=3, top_k=1, **options)


def model_of(*mixers):
    "A model in float64 whose greedy text is no single token repeated."
    torch.manual_seed(0)
    config = mc.LMConfig(24, 2, mixers[0]) if len(mixers) == 1 else mc.LMConfig(24, mixers=list(mixers))
    model = mc.LanguageModel(config).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "out." in name or "down." in name:
                weight.mul_(4)
    return model


CELLS = {"-".join(cell): [memory(*cell)] for cell in product(BACKENDS, AGGREGATIONS, ("constant", "fenwick"))}
CELLS |= {f"{b}-{s}-checkpoint": [memory(b, "grm", s, init="checkpoint")] for b, s in product(BACKENDS, ("constant", "fenwick"))}
CELLS |= {"attention": [ATTENTION], "window": [mc.AttentionConfig(8, 2, window=5)],
          "hybrid": [memory(), ATTENTION], "hybrid of a window": [memory("titans"), mc.AttentionConfig(8, 2, window=5)]}


@pytest.mark.parametrize("mixers", CELLS.values(), ids=CELLS)
def test_greedy_is_the_argmax_of_one_full_pass(mixers):
    model = model_of(*mixers)
    for prompt, row in zip(PROMPTS, model.generate(PROMPTS, 14, temperature=0, piece=4).all(), strict=True):
        with torch.no_grad():
            best = model(torch.tensor([prompt + row])).argmax(-1)[0].tolist()
        assert len(row) == 14 and row == best[len(prompt) - 1:-1]


@pytest.mark.parametrize("mixers", [[memory("titans", "ssc", "fenwick")], [ATTENTION], [memory("swla"), ATTENTION]], ids=["titans", "attention", "hybrid"])
def test_a_sampled_row_is_what_it_is_alone(mixers):
    model = model_of(*mixers)
    batch = model.generate(PROMPTS, 12, temperature=1.5, top_p=0.95, seed=4)
    rows = batch.all()
    assert len(set(map(tuple, rows))) == 3
    for i, prompt in enumerate(PROMPTS):
        assert model.generate([prompt], 12, temperature=1.5, top_p=0.95, seed=4, streams=[i], piece=2).all() == [rows[i]]
    assert model.generate(PROMPTS, 12, temperature=1.5, top_p=0.95, seed=5).all() != rows
    again = model.generate(PROMPTS, 12, temperature=1.5, top_p=0.95)
    assert again.all() == model.generate(PROMPTS, 12, temperature=1.5, top_p=0.95, seed=again.seed).all()


@pytest.mark.parametrize("mixers", [[memory()], [memory("dla", "soup", "fenwick"), ATTENTION]], ids=["grm", "hybrid"])
def test_going_on_from_the_cache_is_not_stopping(mixers):
    model = model_of(*mixers)
    whole = model.generate(PROMPTS, 20, seed=2).all()
    first = model.generate(PROMPTS, 9, seed=2, stop=whole[0][3], return_cache=True)
    begun = [list(row) for row in first.all()]
    assert "stop" in first.ended
    assert list(first.cache.positions) == [len(p) + len(r) - 1 for p, r in zip(PROMPTS, begun)]
    rest = model.generate([row[-1:] for row in begun], 6, seed=2, cache=first.cache, piece=1).all()
    assert [a + b for a, b in zip(begun, rest)] == [row[:len(a) + 6] for row, a in zip(whole, begun)]


def test_stops_end_their_row_alone_and_ended_rows_cost_nothing(monkeypatch):
    model = model_of(memory())
    free, sizes, forward = model.generate(PROMPTS, 12, seed=0).all(), [], model.forward_with_cache
    monkeypatch.setattr(model, "forward_with_cache", lambda t, *a, **k: sizes.append(len(t)) or forward(t, *a, **k))
    stops = [free[0][4], free[1][2:4]]
    held = model.generate(PROMPTS, 12, seed=0, stop=stops)
    for row, (want, made) in enumerate(zip(free, held.all())):
        ends = [n for n in range(1, 13) for s in ([stops[0]], stops[1]) if want[max(0, n - len(s)):n] == s]
        assert made == want[:min(ends, default=12)] and held.ended[row] == ("stop" if ends else "length")
    assert sizes == [sum(len(row) > n for row in held.rows) for n in range(max(map(len, held.rows)))]


def test_a_row_can_be_ended_from_outside():
    model = model_of(memory())
    going = model.generate(PROMPTS, 5, seed=0)
    for token in going:
        if token.row == 1:
            going.end(1)
    assert [len(row) for row in going.rows] == [5, 1, 5] and going.ended == ["length", "stop", "length"]
    with pytest.raises(ValueError, match="row must be an integer from 0 to 2"):
        going.end(3)


def test_tokens_come_step_by_step_with_the_models_probabilities():
    model, steps = model_of(memory()), list(model_of(memory()).generate(PROMPTS, 4, temperature=0.3, top_k=2, seed=0))
    assert [token.row for token in steps] == [0, 1, 2] * 4 and isinstance(steps[0], Token)
    for row, prompt in enumerate(PROMPTS):
        mine = [t for t in steps if t.row == row]
        p = model(torch.tensor([prompt + [t.token for t in mine]])).softmax(-1)[0, len(prompt) - 1:-1]
        assert [t.probability for t in mine] == pytest.approx([p[i, t.token].item() for i, t in enumerate(mine)], abs=1e-5)


def test_between_tokens_the_model_trains_and_gradients_flow():
    model = model_of(memory())
    model.train(), model.blocks[0].eval()
    seen, block = [], model.blocks[1]
    block.register_forward_hook(lambda *_: seen.append((block.training, torch.is_grad_enabled())))
    for _ in (going := model.generate(PROMPTS, 3, return_cache=True)):
        assert (model.training, model.blocks[0].training, block.training, torch.is_grad_enabled()) == (True, False, True, True)
    assert seen and set(seen) == {(False, False)}
    model.forward_with_cache(torch.ones(3, 4).long(), going.cache)[0].sum().backward()    # nothing made in inference mode
    assert model.embedding.weight.grad.isfinite().all()


def test_a_failure_restores_the_model_and_can_be_repeated(monkeypatch):
    model = model_of(memory()).train()
    want, going, forward = model.generate(PROMPTS, 6, seed=1).all(), model.generate(PROMPTS, 6, seed=1), model.forward_with_cache
    next(going), next(going), next(going)

    def broken(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(model, "forward_with_cache", broken)
    with pytest.raises(KeyboardInterrupt):
        next(going)
    assert model.training and torch.is_grad_enabled()
    monkeypatch.setattr(model, "forward_with_cache", forward)
    assert going.all() == want


def test_leaving_early_harms_nothing():
    model = model_of(memory())
    want = model.generate(PROMPTS, 6, seed=1).all()
    for token in model.generate(PROMPTS, 6, seed=1):
        break
    assert model.generate(PROMPTS, 6, seed=1).all() == want


def test_prompts_may_be_tensors_arrays_or_one_list():
    model, rows = model_of(memory()), [[1, 2, 3], [4, 5, 6]]
    want = model.generate(rows, 3, seed=0).all()
    for given in (torch.tensor(rows), torch.tensor(rows, dtype=torch.int32), torch.tensor(rows).numpy(), [torch.tensor(r) for r in rows], tuple(map(tuple, rows))):
        assert model.generate(given, 3, seed=0).all() == want
    assert model.generate(rows[0], 3, seed=0).all() == model.generate(torch.tensor(rows[0]), 3, seed=0).all() == want[:1]


BAD = {
    "no prompt": (dict(prompts=[]), "prompts must be"),
    "an empty prompt": (dict(prompts=[[1], []]), "prompts: row 1 must be"),
    "an empty tensor": (dict(prompts=torch.zeros(2, 0).long()), "prompts: row 0 must be"),
    "a text": (dict(prompts="ab"), "prompts must be"),
    "texts": (dict(prompts=["ab"]), "a text must be encoded first"),
    "fractions": (dict(prompts=[[1, 2.5]]), "prompts: row 0"),
    "a float tensor": (dict(prompts=torch.ones(1, 2)), "prompts must be"),
    "flags": (dict(prompts=[[True, False]]), "prompts: row 0"),
    "a token too large": (dict(prompts=[[1], [24]]), "row 1 must hold tokens between 0 and vocab_size - 1 = 23; got 24"),
    "a negative token": (dict(prompts=[-1, 2]), "prompts must hold tokens"),
    "no new token": (dict(max_new_tokens=0), "max_new_tokens must be an integer >= 1"),
    "half a token": (dict(max_new_tokens=1.5), "max_new_tokens"),
    "cold": (dict(temperature=-0.1), "temperature must be >= 0"),
    "no temperature": (dict(temperature=float("nan")), "temperature must be a finite number"),
    "top_k 0": (dict(top_k=0), "top_k must be an integer >= 1"),
    "top_k 2.0": (dict(top_k=2.0), "top_k"),
    "top_p 0": (dict(top_p=0), "top_p must be above 0"),
    "top_p 1.1": (dict(top_p=1.1), "top_p must be between 0 and 1"),
    "min_p -1": (dict(min_p=-1), "min_p must be between 0 and 1"),
    "min_p of text": (dict(min_p="0.1"), "min_p"),
    "an empty stop": (dict(stop=[]), "stop must be"),
    "an empty sequence": (dict(stop=[3, []]), "stop: entry 1"),
    "a stop that is no token": (dict(stop=99), "stop must hold tokens"),
    "a stop of text": (dict(stop="end"), "stop must be"),
    "a seed": (dict(seed=-1), "seed must be an integer >= 0"),
    "streams": (dict(streams=[0]), "streams must be 3 integers"),
    "piece": (dict(piece=0), "piece must be"),
    "return_cache": (dict(return_cache=1), "return_cache must be True or False"),
}


@pytest.mark.parametrize("given, said", BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_first_token(given, said):
    model = model_of(memory())
    with pytest.raises(ValueError, match=said):
        model.generate(**dict(prompts=PROMPTS, max_new_tokens=3) | given)


def test_a_cache_of_other_rows_and_a_cut_that_needs_the_end_are_refused():
    model = model_of(memory())
    cache = model.forward_with_cache(torch.ones(2, 3).long())[1]
    with pytest.raises(ValueError, match="cache has 2 rows; got 3 prompts"):
        model.generate(PROMPTS, 3, cache=cache)
    with pytest.raises(ValueError, match="return_cache=True"):
        getattr(model.generate(PROMPTS, 3), "cache")
    with pytest.raises(ValueError, match="cuts a whole sequence by the digits of its length"):
        model_of(memory(segmentation="logarithmic")).generate(PROMPTS, 3)
    with pytest.raises(ValueError, match="cuts a whole sequence"):
        model_of(memory(), memory(segmentation="logarithmic")).generate(PROMPTS, 3)
    model_of(memory(aggregation="none", segmentation="logarithmic")).generate(PROMPTS, 3).all()    # nothing is cut
    with pytest.raises(ValueError, match="model must be a Module"):
        generate("model", PROMPTS, 3)


# ---- which token comes next

def kept(p, top_k, top_p, min_p):
    "The filters' definitions, in plain Python: the tokens that may come."
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    left = [i for i in order if p[i] >= p[order[min(top_k, len(p)) - 1]]]
    total, chosen = sum(p[i] for i in left), []
    while len(chosen) < len(left) and (top_p == 1 or sum(p[i] for i in chosen) < top_p * total - 1e-12):
        chosen.append(left[len(chosen)])
    return sorted(i for i in chosen if p[i] >= min_p * p[order[0]])


def test_filters_are_their_definitions():
    gen = torch.Generator().manual_seed(0)
    for case in range(200):
        draw = lambda *values: values[torch.randint(len(values), (), generator=gen)]
        logits = torch.randint(-3, 4, (2, 9), generator=gen).double() * draw(0.5, 1, 2)    # many ties
        logits[0, case % 9] = -torch.inf
        options = draw(1, 2, 4, 9, 50), draw(1e-9, 0.3, 0.5, 0.9, 1), draw(0, 0.05, 0.4, 1)
        p = Sampling(temperature := draw(0.3, 1.0, 2.0), *options).probabilities(logits)
        plain = (logits / temperature).softmax(-1)
        for got, want in zip(p, plain):
            may = kept(want.tolist(), *options)
            assert got.nonzero()[:, 0].tolist() == [i for i in may if want[i] > 0], (case, options)
            assert torch.allclose(got[may], want[may] / want[may].sum(), atol=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("scale", [0, 0.3, 4])
def test_top_p_of_many_tokens_needs_no_whole_sort(share, scale):
    "Ties across the 64 likeliest, and nuclei of one token and of nearly all."
    logits = scale * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).double()
    logits[1] = logits[1].round()
    p = logits.softmax(-1)
    down, order = p.sort(dim=-1, descending=True, stable=True)
    want = torch.zeros_like(p).scatter(-1, order, (down.cumsum(-1) - down < share).double())
    assert torch.equal(likeliest(p, share), want.bool())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-6, 1e30])
def test_extreme_temperatures_give_probabilities(dtype, temperature):
    logits = torch.tensor([[1.0, 30000, 30000, -30000], [0, 1, 2, -torch.inf]], dtype=dtype)
    p = Sampling(temperature, top_p=1.0, min_p=0.0).probabilities(logits)
    assert p.isfinite().all() and torch.allclose(p.sum(-1), torch.ones(2).to(p))
    if temperature < 1e-3:
        assert Sampling(temperature).draw(logits, [0.0, 0.999]).tolist() == [1, 2]


def test_numbers_stay_what_they_were():
    "Texts drawn with a seed can be drawn again by every later version."
    assert [uniform(0, 0, 1), uniform(7, 3, 100)] == [float.fromhex("0x1.b8f8fefab2e60p-1"), float.fromhex("0x1.b0c5701712de0p-1")]
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    edges = [0.0, 0.2499, 0.25, 0.9999, 1 - 2**-48]
    assert Sampling().draw(p.log().expand(5, -1), edges).tolist() == [1, 1, 3, 3, 3]
