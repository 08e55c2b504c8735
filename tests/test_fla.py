"""flash-linear-attention's calling convention: its own left-padded prefill test, its cache (and a double of it), packed rows, names."""
import copy
import warnings
from dataclasses import fields, is_dataclass

import pytest
import torch

import mc.fla


class Cache:
    "What their cache class does with a recurrent layer's state, beams included."

    def __init__(self):
        self.states, self.seen = [], []

    def __len__(self):
        return len(self.states)

    def __getitem__(self, i):
        if i >= len(self):
            raise KeyError(f"Cache only has {len(self)} layers, attempted to access layer with index {i}")
        return self.states[i]

    def update(self, recurrent_state=None, attn_state=None, conv_state=None, ffn_state=None, layer_idx=0, offset=1):
        while len(self.states) <= layer_idx:
            self.states.append(dict(recurrent_state=None, attn_state=None, conv_state=None, ffn_state=None))
            self.seen.append(0)
        if recurrent_state is not None:
            self.states[layer_idx]["recurrent_state"] = recurrent_state
        self.seen[layer_idx] += offset
        return self.states[layer_idx]

    def get_seq_length(self, layer_idx=0):
        return self.seen[layer_idx] if self.seen else 0

    def reorder_cache(self, index):
        def apply(value):
            if isinstance(value, torch.Tensor):
                return value.index_select(0, index)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            if is_dataclass(value):
                return type(value)(**{f.name: apply(getattr(value, f.name)) for f in fields(value)})
            return value

        self.states = apply(tuple(self.states))


def caches():
    "Our double, and theirs where it is installed."
    try:
        from fla.models.utils import Cache as theirs
    except ImportError:
        return [Cache]
    return [Cache, theirs]


def stack(layers=2, **options):
    torch.manual_seed(0)
    made = [mc.fla.MemoryCaching(hidden_size=16, num_heads=2, layer_idx=i, **options).double().eval() for i in range(layers)]

    def run(x, mask=None, cache=None, **kwargs):
        for layer in made:
            x, none, after = layer(x, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **kwargs)
            assert none is None and after is cache
        return x

    return run, made


def batch(lengths, T, new=4):
    "Rows of these lengths and `new` tokens more: each alone, and padded on the left to T + new, with the mask."
    gen = torch.Generator().manual_seed(1)
    rows = [torch.randn(1, n + new, 16, dtype=torch.float64, generator=gen) for n in lengths]
    x = torch.full((len(rows), T + new, 16), 9.0).double()
    for b, row in enumerate(rows):
        x[b, T + new - row.shape[1] :] = row
    return rows, x, torch.stack([torch.arange(T + new) >= T - n for n in lengths]).long()


@pytest.mark.parametrize("options", [dict(segment_size=4), dict(backend="swla", aggregation="ssc", top_k=1, segment_size=5),
                                     dict(backend="titans", aggregation="soup", segment_size=4, chunk_size=2),
                                     dict(segmentation="fenwick", segment_size=4), dict(init="checkpoint", segment_size=4, conv_size=1)], ids=str)
@pytest.mark.parametrize("kind", caches())
def test_left_padded_prefill_in_quarters_then_tokens(kind, options):
    run, _ = stack(**options)
    lengths, T = (24, 13, 2), 24                            # the last has no token in three of the quarters
    rows, x, mask = batch(lengths, T)
    with torch.no_grad():
        alone, cache, read = [run(row) for row in rows], kind(), []
        ends = [0, 6, 12, 18, 24, 25, 26, 27, 28]
        for a, b in zip(ends, ends[1:]):
            read.append(run(x[:, a:b], mask[:, :b], cache))
            assert cache.get_seq_length() == b              # columns, padding included
    read = torch.cat(read, 1)
    for b, (n, y) in enumerate(zip(lengths, alone)):
        assert torch.allclose(read[b, T - n :], y[0], rtol=0, atol=1e-10)
        assert (read[b, : T - n] == 0).all()
    assert cache[1]["recurrent_state"].positions == [n + 4 for n in lengths]


def test_a_batch_in_which_nobody_has_a_token_yet():
    run, _ = stack(segment_size=4)
    rows, x, mask = batch((5, 2), 12)
    with torch.no_grad():
        cache = Cache()
        assert (run(x[:, :6], mask[:, :6], cache) == 0).all() and cache.get_seq_length() == 6
        assert cache[0]["recurrent_state"] is None
        read = run(x[:, 6:], mask, cache)
        assert torch.allclose(read[1, -6:], run(rows[1])[0], atol=1e-10)
        assert (run(x[:, :6], mask[:, :6]) == 0).all()


@pytest.mark.parametrize("kind", caches())
@pytest.mark.parametrize("lengths", [(9, 9, 9), (13, 9, 2)])
def test_beams_go_on_after_their_own_rows(kind, lengths):
    run, _ = stack(segment_size=4)
    rows, x, mask = batch(lengths, 13)
    with torch.no_grad():
        for order in ([2, 0, 1], [1, 1, 0, 2], [2]):
            cache, index = kind(), torch.tensor(order)
            run(x[:, :13], mask[:, :13], cache)
            cache.reorder_cache(index)
            y = run(x[index, 13:15], mask[index, :15], cache)
            y = torch.cat([y, run(x[index, 15:], None, cache)], 1)
            for i, b in enumerate(order):
                assert torch.allclose(y[i], run(rows[b])[0, -4:], atol=1e-10)


def test_packed_rows_with_and_without_a_cache():
    run, _ = stack(segment_size=4)
    rows, *_ = batch((9, 4, 6), 9)
    packed, bounds = torch.cat([row[:, :-4] for row in rows], 1), torch.tensor([0, 9, 13, 19], dtype=torch.int32)
    with torch.no_grad():
        alone = [run(row) for row in rows]
        whole = torch.cat([y[:, :-4] for y in alone], 1)
        assert torch.allclose(run(packed, cu_seqlens=bounds), whole, atol=1e-10)
        wrong = torch.zeros(1, 19)                          # cu_seqlens goes before the mask
        assert torch.allclose(run(packed, wrong, cu_seqlens=bounds), whole, atol=1e-10)
        cache = Cache()
        assert torch.allclose(run(packed, cache=cache, cu_seqlens=bounds), whole, atol=1e-10)
        y = run(torch.cat([row[:, -4:] for row in rows]), cache=cache)
        assert torch.allclose(y, torch.cat([a[:, -4:] for a in alone]), atol=1e-10)


def test_without_use_cache_it_is_read_and_left_and_a_copy_goes_on_by_itself():
    run, (layer, _) = stack(segment_size=4)
    _, x, _ = batch((9, 9), 9)
    with torch.no_grad():
        cache = Cache()
        run(x[:, :9], cache=cache)
        other, state, whole = copy.deepcopy(cache), cache[0]["recurrent_state"], run(x)
        y, _, same = layer(x[:, 9:], past_key_values=cache)
        assert same is cache and cache[0]["recurrent_state"] is state and cache.get_seq_length() == 9
        assert torch.allclose(y, layer(x)[0][:, 9:], atol=1e-10)
        for one in (cache, other):
            assert torch.allclose(run(x[:, 9:], cache=one), whole[:, 9:], atol=1e-10)


def test_training_and_types():
    torch.manual_seed(0)
    layer = mc.fla.MemoryCaching(16, 2, backend="titans", segment_size=4, chunk_size=2)
    y, none, cache = layer(torch.randn(2, 9, 16), torch.ones(2, 9).bool())
    assert none is None and cache is None
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.bfloat16()(torch.randn(1, 5, 16).bfloat16())[0].dtype == torch.bfloat16


def test_names_of_theirs():
    make = lambda **given: mc.fla.MemoryCaching(hidden_size=16, num_heads=2, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = make(layer_idx=3, mode="fused_recurrent", head_dim=8, expand_v=1.0, use_short_conv=False, use_output_gate=False, norm_eps=1e-5)
    assert (layer.layer_idx, layer.layer.config.conv_size, layer.layer.config.output_gate, layer.head_dim) == (3, 1, False, 8)
    assert make(conv_size=4).layer.config.conv_size == 4
    with pytest.warns(UserWarning, match="ignores segmentsize = 8; did you mean segment_size"):
        make(segmentsize=8)
    for given, said in ((dict(head_dim=16), "head_dim must be 8"), (dict(expand_v=2), "expand_v must be 1"), (dict(num_kv_heads=1), "num_kv_heads must be 2"),
                        (dict(layer_idx=-1), "layer_idx"), (dict(use_short_conv="no"), "use_short_conv must be True or False"), (dict(aggregation="grn"), "did you mean 'grm'")):
        with pytest.raises(ValueError, match=said):
            make(**given)


def test_what_does_not_fit_is_refused():
    run, (layer, _) = stack(segment_size=4)
    x, foreign = torch.zeros(2, 5, 16).double(), Cache()
    foreign.update(recurrent_state=torch.zeros(2))
    other = Cache()
    mc.fla.MemoryCaching(16, 2, 0, segment_size=8).double()(x, past_key_values=other, use_cache=True)
    for call, said in ((lambda: mc.fla.MemoryCaching(16, 2).double()(x, past_key_values=Cache()), "needs layer_idx"),
                       (lambda: layer(x, torch.ones(2, 4)), "at least q_len = 5 columns; got \\(2, 4\\)"),
                       (lambda: layer(x, torch.ones(2, 1, 5, 5)), "attention_mask must be a tensor"),
                       (lambda: layer(x, torch.full((2, 5), 2)), "attention_mask must hold 1"),
                       (lambda: layer(x, past_key_values=foreign), "must be a SegmentCache"), (lambda: layer(x, past_key_values=other), "segment"),
                       (lambda: layer(x[0]), "x must be a tensor"), (lambda: layer(x[:1], cu_seqlens=torch.tensor([0, 4])), "must rise from 0 to T = 5")):
        with pytest.raises(ValueError, match=said):
            call()


def test_their_models_do_not_reset_our_biases():
    "Their models set the weights of every Linear anew, and its bias to zero; coefficients would begin at 1/2."
    transformers = pytest.importorskip("transformers")

    class Model(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.attn, self.other = mc.fla.MemoryCaching(16, 2, 0, backend="titans"), torch.nn.Linear(4, 4)
            self.post_init()

        def _init_weights(self, module):
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                torch.nn.init.zeros_(module.bias)

    model = Model(transformers.PretrainedConfig())
    assert (model.other.bias == 0).all() and sorted(set(model.attn.layer.backend.coefficients.proj.bias.tolist())) == [0.0, 7.0]
