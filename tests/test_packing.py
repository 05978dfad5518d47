import copy
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import _dynamo
from torch._dynamo.testing import CompileCounter

import reference_model
import toy_language
from slam import attention
from slam.attention import PACKED, packed_attention
from slam.errors import ConfigError, InputError
from slam.packing import (
    Fill,
    by_length,
    document_sums,
    log_likelihoods,
    logits,
    packed,
    token_log_likelihoods,
    use_packed,
)
from slam.pretrain import PretrainConfig, next_token_task
from slam.shards import Batches, open_shards
from slam.training.engine import Engine, Scored, ready
from slam.training.task import Task
from tiny_families import GROUPED, SCALED, SUPPORTED, VOCABULARY, built, random_documents, save_base

UNSUPPORTED = {
    "mistral-window": ("window", lambda: transformers.MistralConfig(**GROUPED, sliding_window=8)),
    "gemma2": ("window|caps", lambda: transformers.Gemma2Config(**GROUPED, head_dim=8)),
    "falcon": (
        "choose another base",
        lambda: transformers.FalconConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
        ),
    ),
    "bert": ("choose another base", lambda: transformers.BertConfig(**GROUPED)),
    "bloom": (
        "choose another base",
        lambda: transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    ),
    "gpt-neo": (
        "does not attend to the whole",
        lambda: transformers.GPTNeoConfig(
            vocab_size=97,
            hidden_size=32,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=4,
            max_position_embeddings=64,
        ),
    ),
}

# --- Stand-ins for torch's kernel of variable lengths, which runs on CUDA alone.


def attended(query, key, value, starts, *, causal, scale):
    """Attention document by document, `[M, heads, width]`, with every score written out."""
    outputs = []
    for begin, end in pairwise(starts.tolist()):
        scores = torch.einsum("qhw,khw->hqk", query[begin:end], key[begin:end]) * scale
        if causal:
            later = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        outputs.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), value[begin:end]))
    return torch.cat(outputs)


# one operator to the compiler, as the real one is
@torch.library.custom_op("slam_tests::varlen", mutates_args=())
def varlen_operator(  # noqa: PLR0917 - operators take their arguments by place
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    causal: bool,  # noqa: FBT001 - the same
    scale: float,
) -> torch.Tensor:
    lengths = starts.diff()
    if starts.dtype != torch.int32 or starts[0] != 0 or starts[-1] != len(query) or (lengths < 0).any():
        raise ValueError(f"not cumulative: {starts}")
    if lengths.max() > longest:
        raise ValueError(f"a document is longer than the longest of {longest}: {starts}")
    return attended(query, key, value, starts, causal=causal, scale=scale)


@varlen_operator.register_fake
def _(query, *_):
    return torch.empty_like(query)


def _remember(ctx, inputs, output):  # noqa: ARG001 - the signature is torch's
    *tensors, _, causal, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = {"causal": causal, "scale": scale}


def _backward(ctx, gradient):
    *parts, starts = ctx.saved_tensors
    with torch.enable_grad():
        parts = [part.detach().requires_grad_() for part in parts]
        output = attended(*parts, starts, **ctx.options)
        return *torch.autograd.grad(output, parts, gradient), None, None, None, None


varlen_operator.register_autograd(_backward, setup_context=_remember)


def kernel(parts, starts, longest, *, causal, scale=None):
    """What the kernel of every release does and demands."""
    query, key, value = parts
    if not (query.shape == key.shape == value.shape and query.ndim == 3):
        raise ValueError(f"not [M, heads, width], as many heads: {query.shape}, {key.shape}, {value.shape}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"not of one precision: {query.dtype}, {key.dtype}, {value.dtype}")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return varlen_operator(query, key, value, starts, longest, causal, scale)


# fmt: off
def varlen_2_10(  # noqa: PLR0917 - torch's
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None  # noqa: FBT002
):
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k
    assert return_aux is None
    return kernel((query, key, value), cu_seq_q, max_q, causal=is_causal)


def varlen_2_11(  # noqa: PLR0917 - torch's
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k
    assert return_aux is None
    assert window_size in {(-1, -1), (-1, 0)}
    return kernel((query, key, value), cu_seq_q, max_q, causal=window_size == (-1, 0), scale=scale)


def varlen_2_13(  # noqa: PLR0917 - torch's
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
    seqused_k=None, block_table=None, num_splits=None,
):
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k
    assert return_aux is seqused_k is block_table is num_splits is None
    assert window_size in {(-1, -1), (-1, 0)}
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    return kernel((query, key, value), cu_seq_q, max_q, causal=window_size == (-1, 0), scale=scale)
# fmt: on


KERNELS = {"torch 2.10": varlen_2_10, "torch 2.11": varlen_2_11, "torch 2.13": varlen_2_13}
PATHS = ("alone", "alone, then filler", *KERNELS)
FILL = Fill(num_tokens=192, num_documents=20, longest=31)


@contextmanager
def path_of(path):
    """A way through the attention; gives the function that lays documents out for it."""
    with pytest.MonkeyPatch.context() as patch:
        if path in KERNELS:
            patch.setattr(attention.varlen, "varlen_attn", KERNELS[path])
            patch.setattr(attention, "_VARLEN_PARAMETERS", frozenset(signature(KERNELS[path]).parameters))
            yield lambda documents: packed(documents, fill=FILL)
        elif path == "alone, then filler":
            yield lambda documents: replace(packed(documents, fill=FILL), starts=None, longest=0)
        else:
            yield packed


# --- Models and documents.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family → the model with packed attention, and its copy that `transformers` runs by itself."""
    made = {}

    def make(family):
        if family not in made:
            config = (SUPPORTED | SCALED)[family]()
            lm = built(save_base(tmp_path_factory.mktemp(family), config)).eval()
            plain = copy.deepcopy(lm)
            plain.set_attn_implementation("eager")
            use_packed(lm)
            made[family] = (lm, plain)
        return made[family]

    return make


@pytest.fixture(scope="module")
def lm(models):
    return models("qwen2-tied")[0]


@pytest.fixture(scope="module")
def plain(models):
    return models("qwen2-tied")[1]


# documents of one length in a row share a call of the kernel
RUNS = st.lists(st.tuples(st.integers(1, 31), st.integers(1, 3)), min_size=1, max_size=4)
LENGTHS = RUNS.map(lambda runs: [length for length, times in runs for _ in range(times)]).filter(
    lambda lengths: sum(lengths) <= 150
)


def gradients(lm, row):
    lm.zero_grad()
    (-token_log_likelihoods(lm, row).sum()).backward()
    return {name: weight.grad.clone() for name, weight in lm.named_parameters()}


def assert_same(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(
            gradient,
            expected[name],
            atol=tolerance * max(1.0, largest),
            rtol=1e-4,
            msg=lambda m, n=name: n + m,
        )


# --- What a row holds.


def test_no_token_is_asked_to_predict_the_next_document():
    batch = packed([np.array([1, 5, 1]), np.array([1, 6, 7, 1])])
    assert batch.tokens.tolist() == [[1, 5, 1, 1, 6, 7, 1]]
    assert batch.targets.tolist() == [5, 1, -100, 6, 7, 1, -100]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.lengths == (3, 4)
    assert batch.weight == 5
    assert batch.num_tokens == 7


@given(
    lengths=st.lists(st.integers(1, 12), max_size=8),
    longest=st.integers(1, 14),
    spare_tokens=st.integers(0, 40),
    spare_documents=st.integers(0, 5),
)
def test_a_filled_row_has_the_one_shape_and_its_filler_is_never_learnt_from(
    lengths, longest, spare_tokens, spare_documents
):
    assume(lengths or spare_tokens)
    longest = max([longest, *lengths])
    left, filler = spare_tokens, []
    while left:
        filler.append(min(longest, left))
        left -= filler[-1]
    fill = Fill(
        num_tokens=sum(lengths) + spare_tokens,
        num_documents=len(lengths) + len(filler) + spare_documents,
        longest=longest,
    )
    documents = random_documents(lengths)
    row = packed(documents, fill=fill)

    tokens, positions, targets, starts = [], [], [], [0]
    for document in [*(d.tolist() for d in documents), *([0] * length for length in filler)]:
        real = len(starts) <= len(lengths)
        tokens += document
        positions += range(len(document))
        targets += [*document[1:], -100] if real else [-100] * len(document)
        starts.append(len(tokens))
    starts += [starts[-1]] * spare_documents  # empty documents
    assert row.tokens.tolist() == [tokens]
    assert row.positions.tolist() == [positions]
    assert row.targets.tolist() == targets
    assert row.starts.tolist() == starts
    assert row.starts.dtype == torch.int32
    assert row.longest == longest
    assert row.lengths == tuple(lengths)
    assert row.num_tokens == sum(lengths)
    assert row.weight == sum(length - 1 for length in lengths)


@pytest.mark.parametrize(
    ("lengths", "fill"),
    [
        ([5, 6], Fill(num_tokens=10, num_documents=9, longest=8)),
        ([5, 6], Fill(num_tokens=11, num_documents=1, longest=8)),
        ([5, 6], Fill(num_tokens=28, num_documents=4, longest=8)),
        ([5, 9], Fill(num_tokens=20, num_documents=9, longest=8)),
    ],
    ids=["tokens", "documents", "documents of filler", "a longer document"],
)
def test_more_than_fits_into_the_shape_is_refused(lengths, fill):
    with pytest.raises(ValueError, match=f"2 documents of {sum(lengths)} tokens do not fit"):
        packed(random_documents(lengths), fill=fill)


@settings(max_examples=60)
@given(
    items=st.lists(st.lists(st.integers(2, 70), min_size=2, max_size=2), min_size=1, max_size=40),
    documents=st.sampled_from([1, 2]),
    micro_batch_tokens=st.integers(1, 500),
    world_size=st.integers(1, 3),
)
def test_what_a_task_shares_out_always_fits_the_shape_of_its_rows(
    items, documents, micro_batch_tokens, world_size
):
    items = [item[:documents] for item in items]
    costs = np.array([sum(item) for item in items])
    task = Task(
        order=Batches(costs, 1000, 0),
        costs=costs,
        terms=costs - documents,
        documents=documents,
        longest=max(map(max, items)),
        row=None,
        loss=None,
        validate=None,
    )
    fill = task.fill(micro_batch_tokens)
    assume(task.longest * documents <= fill.num_tokens)  # else training refuses to begin
    bins = task.share_out(np.arange(len(items)), micro_batch_tokens, fill, world_size)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(items)))
    for numbers in bins:
        row = packed(random_documents([n for number in numbers for n in items[number]]), fill=fill)
        assert (row.tokens.shape[1], len(row.starts)) == (fill.num_tokens, fill.num_documents + 1)


# --- What the model makes of a row.


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=12, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
def test_packed_documents_score_as_each_does_alone(lm, plain, path, lengths, seed):
    documents = random_documents(lengths, seed)
    with torch.no_grad(), path_of(path) as laid_out:
        together = logits(lm, laid_out(documents))[: sum(lengths)]
        alone = torch.cat([reference_model.document_logits(plain, document) for document in documents])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=5, deadline=None)
@given(lengths=LENGTHS)
def test_packed_gradients_are_the_sum_of_each_documents(lm, plain, path, lengths):
    documents = random_documents(lengths)
    with path_of(path) as laid_out:
        found = gradients(lm, laid_out(documents))
    assert_same(found, reference_model.summed_gradients(plain, documents))


@pytest.mark.parametrize("release", KERNELS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "pythia", "opt", "gpt2", "granite"])
def test_every_release_of_the_kernel_gives_what_single_documents_give(models, family, release):
    lm, plain = models(family)  # with shared keys and without, and scores scaled in three ways
    documents = random_documents([9, 9, 9, 1, 31, 2, 2])
    with path_of(release) as laid_out:
        row = laid_out(documents)
        found = token_log_likelihoods(lm, row)
        alone = [reference_model.token_log_likelihoods(plain, document) for document in documents]
        expected = torch.cat([torch.cat([one, torch.zeros(1)]) for one in alone])  # nothing follows the last
        torch.testing.assert_close(found[: row.num_tokens], expected, atol=2e-5, rtol=1e-5)
        assert not found[row.num_tokens :].any()
        assert_same(gradients(lm, row), reference_model.summed_gradients(plain, documents))


def test_torchs_own_kernel_takes_what_it_is_handed(models):
    for family in ("qwen2", "granite", "pythia"):
        # on the meta device the real function runs up to its kernel: it checks its arguments, not the scores
        lm = copy.deepcopy(models(family)[0]).to("meta")
        scores = logits(lm, packed(random_documents([9, 3]), "meta", FILL))
        assert scores.shape == (FILL.num_tokens, VOCABULARY.size)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS, which=st.integers(0, 11), seed=st.integers(1, 1000))
def test_changing_one_document_never_moves_another(lm, path, lengths, which, seed):
    which %= len(lengths)
    before = random_documents(lengths)
    after = list(before)
    after[which] = random_documents(lengths, seed)[which]
    with torch.no_grad(), path_of(path) as laid_out:
        first, second = (token_log_likelihoods(lm, laid_out(some)) for some in (before, after))
    moved = (first != second)[: sum(lengths)].split(lengths)
    for number, document in enumerate(moved):
        assert number == which or not document.any()
    if len(before[which]) > 1 and (before[which] != after[which]).any():
        assert moved[which].any()


@pytest.mark.parametrize("path", [path for path in PATHS if path != "alone"])
def test_filler_never_moves_a_document(lm, path):
    lengths = [9, 31, 31]
    with torch.no_grad(), path_of(path) as laid_out:
        row = laid_out(random_documents(lengths))
        other = row.tokens.clone()
        other[:, row.num_tokens :] = 7
        first, second = (logits(lm, each) for each in (row, replace(row, tokens=other)))
    assert torch.equal(first[: row.num_tokens], second[: row.num_tokens])
    assert (first != second)[row.num_tokens :].any()


@pytest.mark.parametrize("path", ["alone", *KERNELS])
def test_a_process_without_documents_adds_gradients_of_zero(lm, path):
    with path_of(path) as laid_out:
        row = laid_out([])
        assert (row.num_tokens, row.weight, row.lengths) == (0, 0, ())
        # of every weight: the processes exchange them all
        assert not any(gradient.any() for gradient in gradients(lm, row).values())


# --- One graph.


def scored_row(module, row):
    return module(row.tokens, row.positions, row.targets, row.starts, row.longest, ())


@pytest.mark.parametrize("release", KERNELS)
@pytest.mark.parametrize("family", SUPPORTED | SCALED)
def test_a_family_in_bf16_scores_nearly_as_in_fp32(models, family, release):
    lm = copy.deepcopy(models(family)[0])
    documents = random_documents([9, 31, 31, 2])
    with path_of(release) as laid_out:
        row = laid_out(documents)
        expected = token_log_likelihoods(lm, row).detach()
        # the kernel takes its three parts in one precision, wherever a family leaves them
        found = scored_row(Scored(lm, bf16=True), row)
        assert found.dtype == torch.float32
        found.sum().backward()
    error = (found.detach() - expected).abs()[: row.num_tokens]
    assert 0 < float(error.mean()) < 0.05
    assert all(weight.grad.dtype == torch.float32 for weight in lm.parameters())


@pytest.mark.parametrize(
    ("family", "release", "bf16"),
    [
        *((family, "torch 2.13", False) for family in SUPPORTED | SCALED),
        ("qwen2", "torch 2.10", False),
        ("qwen2", "torch 2.11", False),
        ("qwen2", "torch 2.13", True),
        ("qwen3", "torch 2.13", True),
    ],
)
def test_rows_of_any_documents_go_through_one_graph(models, family, release, bf16):
    lm = copy.deepcopy(models(family)[0]).train()
    scored = Scored(lm, bf16=bf16)
    compiled = copy.copy(scored)  # of the same weights
    graphs = CompileCounter()
    _dynamo.reset()
    compiled.compile(fullgraph=True, dynamic=False, backend=graphs)
    with path_of(release) as laid_out:
        for seed, lengths in enumerate([(5, 7, 20), (31, 31, 31, 31), (3,), (9,) * 9, ()]):
            row = laid_out(random_documents(lengths, seed))
            found, expected = scored_row(compiled, row), scored_row(scored, row)
            torch.testing.assert_close(found, expected)
            weights = list(lm.parameters())
            for one, two in zip(
                torch.autograd.grad(found.sum(), weights),
                torch.autograd.grad(expected.sum(), weights),
                strict=True,
            ):
                torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)
    assert graphs.frame_count == 1


def test_an_engine_of_one_graph_learns_what_the_plain_one_does(tmp_path):
    shards = toy_language.write_shards(
        tmp_path, toy_language.utterances(60), toy_language.utterances(5, seed=1)
    )
    config = PretrainConfig(shards=shards, budget="10 steps", batch_tokens=150, micro_batch_tokens=64)
    lm = toy_language.new_toy_lm()
    use_packed(lm)
    task = next_token_task(lm, open_shards(shards, "train"), open_shards(shards, "validation"), config)
    plain = ready(lm, config, task)
    assert plain.fill is None  # as on any CPU
    compiled = Scored(lm, bf16=False)
    graphs = CompileCounter()
    _dynamo.reset()
    compiled.compile(fullgraph=True, dynamic=False, backend=graphs)
    engine = Engine(lm, compiled, compiled, task, task.fill(64), 64)
    batches = task.order.starting_at(0)
    with path_of("torch 2.13"):
        for _ in range(3):
            items = next(batches)
            weight = int(task.terms[items].sum())
            nothing = np.zeros(0, np.int64)  # what another process may be left with
            results = []
            for each in (plain, engine):
                lm.zero_grad()
                figures = each.gradients([*each.micro_batches(items), nothing], weight)
                results.append((figures, {name: w.grad.clone() for name, w in lm.named_parameters()}))
            (expected, learnt), (found, same) = results
            assert len(engine.micro_batches(items)) > 1
            assert {name: float(value) for name, value in found.items()} == pytest.approx(
                {name: float(value) for name, value in expected.items()}
            )
            assert int(found["num_tokens"]) == task.costs[items].sum()
            assert_same(same, learnt)
    assert graphs.frame_count == 1


# --- Which models can be packed.


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_a_family_that_cannot_be_packed_is_refused_in_one_line(family, tmp_path):
    why, config = UNSUPPORTED[family]
    base = save_base(tmp_path, config())
    with pytest.raises(ConfigError, match=why) as caught:
        use_packed(built(base))
    assert "\n" not in str(caught.value)


def test_a_window_that_no_document_outgrows_is_harmless_and_a_shorter_one_is_refused(tmp_path):
    config = transformers.MistralConfig(**GROUPED, sliding_window=20)
    model = built(save_base(tmp_path, config))
    use_packed(model)
    assert logits(model, packed(random_documents([20, 20]))).isfinite().all()
    with pytest.raises(ConfigError, match="21 tokens is longer than the window of 20"):
        logits(model, packed(random_documents([21, 5])))
    # a row of one shape may hold a document of its longest, whatever it holds now
    with pytest.raises(ConfigError, match="31 tokens is longer than the window of 20"):
        logits(model, packed(random_documents([3]), fill=FILL))


def test_attention_without_the_documents_lengths_is_refused_rather_than_wrong():
    part = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ConfigError, match="Linear does not hand document lengths on"):
        packed_attention(torch.nn.Linear(1, 1), part, part, part, None)
    with pytest.raises(ConfigError, match="Linear caps its attention scores"):
        packed_attention(torch.nn.Linear(1, 1), part, part, part, None, document_lengths=(5,), softcap=30.0)


def test_packing_a_model_leaves_it_in_the_mode_it_was_in(models):
    model = copy.deepcopy(models("gpt2")[0])
    for training in (True, False):
        model.train(training)
        use_packed(model)
        assert model.training is training
        assert model.config._attn_implementation == PACKED  # noqa: SLF001 - transformers shows it nowhere else


def test_broken_weights_are_named_before_a_training_starts(models):
    model = copy.deepcopy(models("gpt2")[0])
    with torch.no_grad():
        next(model.parameters())[3] = torch.nan
    with pytest.raises(InputError, match="its weights are broken"):
        use_packed(model)


# --- Likelihoods of documents.


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), filler=st.integers(0, 5), data=st.data())
def test_sums_over_documents_leave_prompts_and_filler_out(lengths, filler, data):
    skipped = [data.draw(st.integers(0, length)) for length in lengths]
    values = torch.arange(1, sum(lengths) + filler + 1, dtype=torch.float64).sqrt()
    whole, rest, begin = [], [], 0
    for length, left_out in zip(lengths, skipped, strict=True):
        whole.append(sum(float(values[begin + i]) for i in range(length)))
        rest.append(sum(float(values[begin + i]) for i in range(left_out, length)))
        begin += length
    assert document_sums(values, lengths).tolist() == pytest.approx(whole)
    assert document_sums(values, lengths, skipped).tolist() == pytest.approx(rest)


@given(lengths=st.lists(st.integers(1, 40), max_size=20), most_tokens=st.integers(1, 100))
def test_documents_are_grouped_longest_first_and_no_fuller_than_allowed(lengths, most_tokens):
    groups = list(by_length(lengths, most_tokens))
    order = [number for group in groups for number in group]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[number] for number in order] == sorted(lengths, reverse=True)
    for group, after in pairwise([*groups, None]):
        spent = sum(lengths[number] for number in group)
        assert len(group) == 1 or spent <= most_tokens
        assert after is None or spent + lengths[after[0]] > most_tokens


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=8),
    most_tokens=st.integers(1, 200),
    data=st.data(),
)
def test_log_likelihoods_equal_one_document_at_a_time_in_any_grouping(lm, plain, lengths, most_tokens, data):
    documents = random_documents(lengths, len(lengths))
    skipped = [data.draw(st.integers(0, length - 1)) for length in lengths]
    sums, counts = log_likelihoods(lm, documents, skipped=skipped, most_tokens=most_tokens)
    expected = [
        reference_model.document_log_likelihood(plain, *pair) for pair in zip(documents, skipped, strict=True)
    ]
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    np.testing.assert_array_equal(counts, np.array(lengths) - 1 - np.array(skipped))
    backwards, _ = log_likelihoods(lm, documents[::-1], skipped=skipped[::-1], most_tokens=most_tokens)
    np.testing.assert_allclose(backwards[::-1], sums, atol=1e-4)


def test_no_documents_have_no_log_likelihoods(lm):
    sums, counts = log_likelihoods(lm, [])
    assert (sums.shape, counts.shape) == ((0,), (0,))


class GivenUpError(Exception):
    """Stands for the signal that ends a training."""


@pytest.mark.parametrize("training", [True, False])
def test_log_likelihoods_leave_the_model_in_the_mode_it_was_in_even_when_given_up(models, training):
    lm = copy.deepcopy(models("gpt2")[0]).train(training)
    modes, calls = [], iter([None, None, GivenUpError()])

    def poll():
        modes.append(lm.training)
        if error := next(calls):
            raise error

    documents = random_documents([5, 5, 5])
    log_likelihoods(lm, documents[:2], most_tokens=5, poll=poll)
    assert lm.training is training
    with pytest.raises(GivenUpError):
        log_likelihoods(lm, documents, most_tokens=5, poll=poll)
    assert lm.training is training
    assert modes == [False, False, False]


def test_a_document_beyond_a_table_of_positions_is_refused_and_rotary_ones_go_on(models):
    documents = random_documents([65])
    with pytest.raises(InputError, match="65 tokens is longer than the 64 positions"):
        log_likelihoods(models("gpt2")[0], documents)
    sums, _ = log_likelihoods(models("llama")[0], documents)
    assert np.isfinite(sums).all()


@pytest.mark.parametrize("family", list(SUPPORTED))
@settings(max_examples=8, deadline=None)
@given(
    pairs=st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=4), seed=st.integers(0, 2**16)
)
def test_two_continuations_need_their_prompt_but_once(models, family, pairs, seed):
    """Log-likelihoods and gradients are those of whole documents, each with its prompt."""
    generator = np.random.default_rng(seed)
    lm, _ = models(family)
    whole, once, shared = [], [], []
    for prompt, better, worse in pairs:
        start = generator.integers(VOCABULARY.size, size=prompt)
        sides = [
            np.append(start, generator.integers(VOCABULARY.size, size=n)).astype(np.uint16)
            for n in (better, worse)
        ]
        whole += sides
        once += [sides[0], sides[1][prompt - 1 :]]
        shared += [0, prompt - 1]
    skipped = [prompt - 1 for prompt, _, _ in pairs for _ in range(2)]
    left = [prompt - 1 if side == 0 else 0 for prompt, _, _ in pairs for side in range(2)]
    found = []
    for row, out in ((packed(whole), skipped), (packed(once, shared=shared), left)):
        lm.zero_grad()
        sums = document_sums(token_log_likelihoods(lm, row), row.lengths, out)
        (sums * torch.arange(1, len(sums) + 1)).sum().backward()
        found.append((sums.detach(), [w.grad.clone() for w in lm.parameters() if w.grad is not None], row))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    assert found[0][2].num_tokens == found[1][2].num_tokens
    assert found[1][2].tokens.numel() == found[0][2].tokens.numel() - sum(shared)
