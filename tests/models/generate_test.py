"""The sampler against sampling without a cache, PyTorch, and the distribution asked."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import parallel
from trustml.fairness import likelihood
from trustml.models import generate, gpt2, language_model

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "gpt2"
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
NEW = 16


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def model():
    return gpt2.pretrained(GOLDEN)


@pytest.fixture(scope="module")
def drawn(model):
    """A compiled sampler of 8 tokens and a run of it on 2 prompts, 3 samples each."""
    sample = jit(generate.sampler(model.decoder, max_new_tokens=8, top_p=0.95))
    tokens = np.array([[5, 9, 11, 0], [7, 8, 20, 31]])
    rows = generate.repeat(tokens, [3, 4], 3)
    return sample, rows, sample(model.params, rows, jax.random.key(0))


def _uncached(logits, params, prompt, new):
    """Greedy continuation with the whole text read again for every token."""
    text = np.zeros(len(prompt) + new, np.int32)
    text[: len(prompt)] = prompt
    for at in range(len(prompt), len(text)):
        example = {"tokens": jnp.asarray(text), "length": jnp.int32(at)}
        text[at] = int(jnp.argmax(logits(params, example)[at - 1]))
    return text[len(prompt) :]


def test_greedy_equals_pytorch_and_greedy_without_a_cache(model, golden):
    sample = generate.sampler(model.decoder, max_new_tokens=NEW, temperature=0.0)
    rows = generate.repeat(golden["tokens"], golden["lengths"])
    out = jit(sample)(model.params, rows, jax.random.key(0))
    np.testing.assert_array_equal(out.tokens, golden["greedy"])
    assert len(np.unique(golden["greedy"])) > 8  # it is not one word for ever
    logits = jit(model.logits)
    for row, prompt, length in zip(
        out.tokens, golden["tokens"], golden["lengths"], strict=True
    ):
        expected = _uncached(logits, model.params, prompt[:length], NEW)
        np.testing.assert_array_equal(row, expected)
    # The log-probabilities are those of the whole text read at once.
    text = np.concatenate([golden["tokens"][3, :9], out.tokens[3]])
    whole = {"tokens": jnp.asarray(text), "length": jnp.int32(len(text))}
    said = jax.nn.log_softmax(logits(model.params, whole))
    expected = said[np.arange(8, len(text) - 1), text[9:]]
    np.testing.assert_allclose(out.log_probs[3], expected, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_of_the_recurrent_model_equals_reading_all_again(tied):
    sizes = {"width": 8, "hidden": 12, "tied": tied}
    task = language_model.task(19, **sizes)
    params = task.init(jax.random.key(1))
    params = jax.tree.map(lambda x: 3 * x, params)
    sample = generate.sampler(
        language_model.decoder(19, **sizes), max_new_tokens=6, temperature=0.0
    )
    prompts = np.array([[3, 5, 0, 7], [4, 9, 2, 11], [1, 1, 1, 1]], np.int32)
    lengths = [2, 4, 0]  # an empty prompt begins a text
    rows = generate.repeat(prompts, lengths)
    out = jit(sample)(params, rows, jax.random.key(0))
    predict = jit(task.predict)
    for row, prompt, length in zip(out.tokens, prompts, lengths, strict=True):
        text = np.zeros(10, np.int32)
        text[:length] = prompt[:length]
        for at in range(length, length + 6):
            example = {"tokens": jnp.asarray(text), "length": jnp.int32(at + 1)}
            text[at] = int(jnp.argmax(predict(params, example)[at]))
        np.testing.assert_array_equal(row, text[length : length + 6])


def test_an_empty_prompt_begins_with_the_token_that_begins_a_text(model):
    sample = jit(generate.sampler(model.decoder, max_new_tokens=8))
    begin = model.config.begin_id
    rows = generate.repeat([[9, 9], [begin, 9]], [0, 1], prompt_id=[0, 0])
    out = sample(model.params, rows, jax.random.key(0))
    np.testing.assert_array_equal(out.tokens[0], out.tokens[1])
    # What it says has the log-probabilities of a text read at once.
    batch = jit(likelihood.causal_batch(model.logits, bos_id=begin))
    score, there = likelihood.causal(batch, model.params), np.ones((1, 8), bool)
    expected = score(np.asarray(out.tokens)[:1], there, there)
    np.testing.assert_allclose(out.log_probs[:1], expected, atol=1e-4)
    # So too where prompts have no slots at all.
    none = generate.repeat(np.zeros((1, 0), int), [0])
    again = sample(model.params, none, jax.random.key(0))
    np.testing.assert_array_equal(again.tokens, out.tokens[:1])


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1e-38, 1e-30])
def test_hardly_any_temperature_is_none(temperature):
    logits = 30 * jax.random.normal(jax.random.key(0), (50, 7))
    keys = jax.random.split(jax.random.key(1), 50)
    for options in ((0, 1.0), (3, 0.9)):
        draw = generate._draw(7, temperature, *options)
        token, _ = jax.vmap(draw, (0, 0, None))(logits, keys, jnp.uint32(0))
        np.testing.assert_array_equal(token, logits.argmax(axis=1))


def test_text_does_not_depend_on_batch_order_or_company(model, drawn):
    sample, rows, out = drawn
    order = np.array([4, 0, 5, 2, 1, 3])
    mixed = jax.tree.map(lambda x: x[order], rows)
    again = sample(model.params, mixed, jax.random.key(0))
    np.testing.assert_array_equal(again.tokens, np.asarray(out.tokens)[order])
    alone = jax.tree.map(lambda x: x[4:5], rows)
    single = sample(model.params, alone, jax.random.key(0))
    np.testing.assert_array_equal(single.tokens, np.asarray(out.tokens)[4:5])
    assert len(np.unique(np.asarray(out.tokens), axis=0)) == 6
    other = sample(model.params, rows, jax.random.key(1))
    assert (np.asarray(other.tokens) != np.asarray(out.tokens)).any(axis=1).all()


def test_room_for_longer_prompts_changes_nothing(model, drawn):
    sample, rows, out = drawn
    wide = rows._replace(tokens=np.pad(rows.tokens, ((0, 0), (0, 5))))
    again = sample(model.params, wide, jax.random.key(0))
    np.testing.assert_array_equal(again.tokens, out.tokens)


@pytest.mark.parametrize("count", [2, 4])
def test_text_does_not_depend_on_devices(model, drawn, count):
    _, rows, out = drawn
    plain = generate.sampler(model.decoder, max_new_tokens=8, top_p=0.95)
    devices = parallel.devices(count)

    def local(shared, part):
        params, key = shared
        return (), plain(params, part, key)

    run = jit(parallel.map_sum(local, devices=devices))
    dealt = parallel.shard(parallel.deal(rows, count), devices)
    shared = parallel.replicate((model.params, jax.random.key(0)), devices)
    _, found = run(shared, dealt)
    found = parallel.undeal(found, count, length=6)
    np.testing.assert_array_equal(found.tokens, out.tokens)


def test_a_finished_row_is_frozen(model, drawn):
    """What is drawn before the end is what is drawn without one."""
    _, rows, free = drawn
    end = int(np.asarray(free.tokens)[1, 3])
    stop = generate.sampler(model.decoder, max_new_tokens=8, top_p=0.95, eos_id=end)
    out = jit(stop)(model.params, rows, jax.random.key(0))
    for row, plain, length, done, log_probs in zip(
        *map(np.asarray, (out.tokens, free.tokens)),
        *map(np.asarray, (out.length, out.finished, out.log_probs)),
        strict=True,
    ):
        expected = plain.tolist().index(end) if end in plain else 8
        assert length == expected and done == (end in plain)
        np.testing.assert_array_equal(row[:length], plain[:length])
        assert (row[length:] == end).all()
        assert (log_probs[: length + 1] < 0).all()
        assert (log_probs[length + 1 :] == 0).all()
    assert out.finished[1] and out.length[1] <= 3


def test_cuts_keep_what_they_say():
    probs = np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32)
    logits = jnp.log(probs) + 3.0  # a constant does not matter

    def kept(**options):
        cut = generate.keep_top(logits, **options)
        assert (np.asarray(cut) == np.asarray(logits))[np.isfinite(cut)].all()
        return np.flatnonzero(np.isfinite(cut)).tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.39) == [1]  # the first always
    assert kept(top_p=0.41) == [1, 3]  # the token that crosses p stays
    assert kept(top_p=0.64) == [1, 3]
    assert kept(top_p=0.66) == [1, 3, 4]
    # p of what k left: 0.4/0.65 is 0.615.
    assert kept(top_k=2, top_p=0.6) == [1]
    assert kept(top_k=2, top_p=0.65) == [1, 3]
    tied = generate.keep_top(jnp.array([1.0, 0.0, 0.0, -1.0]), top_k=2)
    assert np.isfinite(tied).tolist() == [True, True, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_top_p_just_below_one_leaves_the_cut_of_top_k(seed):
    logits = np.random.default_rng(seed).normal(size=188).astype(np.float32)
    for top_p in (1 - 1e-8, 1 - 1e-6):
        cut = np.isfinite(generate.keep_top(jnp.asarray(logits), 26, top_p))
        largest = np.sort(np.argsort(-logits)[:26])
        np.testing.assert_array_equal(np.flatnonzero(cut), largest)


@pytest.mark.parametrize(
    ("tokens", "length", "ids", "named"),
    [
        ([[1.5, 2.0]], [2], None, "tokens"),
        ([[1, 2]], [1.7], None, "length"),
        ([[1, 2]], [2], [2**33], "prompt_id"),
        ([[2**31, 2]], [2], None, "tokens"),
    ],
)
def test_numbers_of_prompts_are_not_cut(tokens, length, ids, named):
    with pytest.raises(ValueError, match=named):
        generate.repeat(tokens, length, prompt_id=ids)


def test_draws_follow_the_tempered_distribution(model):
    """Shares of 4,000 first tokens against softmax(z / temperature), cut and scaled.

    A count has a standard deviation of at most sqrt(4000)/2 = 31.6; 5 of them, over 61
    words, are passed by chance less than once in 20,000.
    """
    prompt, count = [5, 9, 11], 4000
    sample = generate.sampler(
        model.decoder, max_new_tokens=1, temperature=1.7, top_k=12, top_p=0.9
    )
    rows = generate.repeat([prompt], [3], count)
    out = jit(sample)(model.params, rows, jax.random.key(5))
    example = {"tokens": jnp.array(prompt), "length": jnp.int32(3)}
    z = np.asarray(model.logits(model.params, example), np.float64)[2] / 1.7
    order = np.argsort(-z)[:12]
    probs = np.exp(z[order] - z[order].max())
    probs /= probs.sum()
    last = int(np.searchsorted(np.cumsum(probs), 0.9)) + 1
    expected = np.zeros(61)
    expected[order[:last]] = probs[:last] / probs[:last].sum()
    found = np.bincount(np.asarray(out.tokens)[:, 0], minlength=61) / count
    assert (found[expected == 0] == 0).all()
    tolerance = 5 * np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) <= tolerance + 1e-12).all()
    assert last >= 5


def test_one_compilation_and_no_more(model, drawn):
    sample, rows, _ = drawn
    before = sample._cache_size()
    sample(model.params, rows, jax.random.key(9))
    assert sample._cache_size() == before


def test_a_step_costs_one_token(model):
    """The compiler's FLOPs of one step against those of a text of 28 tokens."""
    _, cache = jax.eval_shape(
        lambda p: model.decoder.prefill(p, jnp.zeros(4, jnp.int32), jnp.int32(4), 28),
        model.params,
    )
    assert cache.keys.shape == (2, 4, 28, 8)
    example = {"tokens": jnp.zeros(28, jnp.int32), "length": jnp.int32(28)}
    step = jit(model.decoder.step).lower(
        model.params, jnp.int32(0), jnp.int32(4), cache
    )
    whole = jit(model.logits).lower(model.params, example)
    flops = [x.compile().cost_analysis()["flops"] for x in (step, whole)]
    assert flops[0] < flops[1] / 20


def test_wrong_options_are_refused(model):
    decoder = model.decoder
    for options, word in (
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "at most 1"),
        ({"eos_id": 61}, "61 words"),
    ):
        with pytest.raises(ValueError, match=word):
            generate.sampler(decoder, **({"max_new_tokens": 3} | options))
    rows = generate.repeat(np.zeros((1, 20), int), [3])
    with pytest.raises(ValueError, match="32 positions"):
        sample = generate.sampler(decoder, max_new_tokens=13)
        sample(model.params, rows, jax.random.key(0))
    with pytest.raises(ValueError, match="between 0 and the 2 slots"):
        generate.repeat([[1, 2]], [3])
    with pytest.raises(ValueError, match="one length"):
        generate.repeat([[1, 2]], [3, 4])
    with pytest.raises(ValueError, match="prompt_id"):
        generate.repeat([[1, 2]], [2], prompt_id=[1, 2])
