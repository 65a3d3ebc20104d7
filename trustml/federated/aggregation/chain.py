"""Links put in order: one aggregator, which knows the sensitivity of its sum.

    clip -> compress -> clip again -> weight -> (secure sum | robust | sum) -> noise
    -> divide

`client` turns one client's message into what it sends; the caller adds s_k times that
up (`collect='sum'`), or stores it in rows (`collect='stack'`, for secure sums and
robust rules); `server` makes an update of it. A message with NaN or inf, as it comes
or after any link of the client, becomes zero, is counted and keeps its place in the
cohort; a client whose links overflow keeps its memory as it was.

Formal guarantees: whatever a client sends, replacing it by nothing changes the sum
  before noise by at most `sensitivity(state)` in L2, provided no weight exceeds
  `rule.s_max`. A chain with noise is refused where that is not known: without clipping,
  with weights by data, with a robust rule, with a denominator that depends on who came.

Left out, weights are 1, and the sum is a plain one. What it is divided by follows from
the rule of the weights.

Example::

    rule = rules.mean(cohort=50)                     # of `trustml.federated.weighting`
    aggregator = chain.chain(
        clipping.clip(1.0), weighting.of(rule), dp.central(noise_multiplier=1.0)
    )
    state = aggregator.init(params, rng.root())
    sent, memory, records = jax.vmap(aggregator.client, (None, 0, 0, 0))(
        state, deltas, memory, keys
    )
    total = link.weighted_sum(sent, cohort)          # where collect is 'sum'
    update, state, info = aggregator.server(state, total, cohort, key)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml.federated import weighting as rules
from trustml.federated.aggregation import clipping, link, weighting

ORDER = (
    "clip -> compress -> clip again -> weight -> (secure sum | robust | sum) -> noise "
    "-> divide"
)
_STAGES = ("clip", "compress", "clip again", "weight", "collect", "noise", "divide")


class Aggregator(NamedTuple):
    """Pure functions; made by `chain`.

    Attributes:
      init: (like, root=None) -> state at the server. like: params, or whatever messages
        look like; root: `rng.Root`, needed where the chain adds noise.
      memory: like -> what one client keeps between its rounds (error feedback); ().
      client: (state, message, memory, key) -> (Message, memory, Record). One client,
        for `vmap`; message: like params, float32; float64 where
        nothing is compressed, kept in rows or made noisy.
      collect: 'sum': the server wants sum_k s_k Message_k; 'stack': it wants the
        Messages in rows [m, ...], unweighted.
      server: (state, Message, Cohort, key) -> (update like params, state, Info).
      sensitivity: state -> L2 per user of the sum before noise; None where undeclared.
        A number where the clip norm is fixed; state None stands for the first round.
      rule: how much a client counts, of `trustml.federated.weighting`.
      release: what the accountant has to know; None without noise.
      ordered: the link whose result follows, in its last bits, the order of the rows;
        '' where none does.
      bends: the first link that makes of one message, or of a stack of them, what no
        weighted mean would (clipping, compression, a robust rule); '' where none does.
      loses: the first that takes of messages what is never sent later (clipping, a
        robust rule); '' where none does.
      most: the largest weight that the noise, or the lattice of a secure sum, is made
        for; None where neither is there.
      explain: () -> the chain in words, a line for each link.
    """

    init: Callable[..., Any]
    memory: Callable[[Any], Any]
    client: Callable[..., tuple[link.Message, Any, link.Record]]
    collect: str
    server: Callable[..., tuple[Any, Any, link.Info]]
    sensitivity: Callable[..., Any]
    rule: rules.Weighting
    release: link.Release | None
    explain: Callable[[], str]
    ordered: str = ""
    bends: str = ""
    loses: str = ""
    most: float | None = None


def chain(*links: Any) -> Aggregator:
    """The aggregator of these links, in the order of this module's docstring.

    Args:
      *links: `link.Link`s, from the factories of the other modules.

    Raises:
      ValueError: if their order, or two of them together, cannot be; the sentence names
        both and the cure. When traced, if a message is neither float32 nor float64.
    """
    made = _completed(list(links))
    links = tuple(made)
    weight = _only(made, "weight")
    collect = _only(made, "collect")
    noise = _only(made, "noise")
    tracked = [one for one in made if one.bit_stddev is not None]
    _check_pairs(made, weight, collect, noise, tracked)

    def bounds(states) -> link.Bounds:
        bound, client = None, None
        for one, state in zip(links, states, strict=True):
            if one.stage == "noise":
                break
            bound = one.bound(state, bound)
            if one.stage in ("clip", "compress"):
                client = bound
        total = None if collect is not None and collect.robust else bound
        stddev = tracked[0].bit_stddev if tracked else None
        return link.Bounds(client, total, weight.largest_weight, stddev)

    before = (None,) * len(links)
    for one in links:
        one.check(bounds(before))

    def init(like, root=None):
        first = bounds(before)
        return tuple(one.init(like, root, first) for one in links)

    def memory(like):
        return tuple(one.memory(like) for one in links)

    def client(state, message, memory, key):
        _check_floats(message)
        if not memory:
            memory = ((),) * len(links)
        message, record = _sanitised(message)
        kept, fine = [], jnp.ones((), bool)
        for number, (one, own, past) in enumerate(
            zip(links, state, memory, strict=True)
        ):
            if one.client is not None:
                step = jax.random.fold_in(key, number)
                message, past, record = one.client(own, message, past, step, record)
                sound = _finite((message, past))
                message = message._replace(update=_zero_unless(sound, message.update))
                fine = fine & sound
            kept.append(past)
        # What was not sent is not in the memory either.
        kept = jax.tree.map(lambda new, old: jnp.where(fine, new, old), kept, [*memory])
        record = record._replace(
            norm=jnp.where(fine, record.norm, 0.0), finite=record.finite & fine
        )
        return message, tuple(kept), record

    def server(state, message, cohort, key):
        given = bounds(state)  # of this round: a tracked norm moves on below
        info = _first_info(given)
        if collect is not None and collect.collect == "stack":
            message = _with_bits(message, cohort)
        after: list[Any] = list(state)
        for number, one in enumerate(links):
            if one.server is not None:
                step = jax.random.fold_in(key, number)
                message, after[number], info = one.server(
                    state[number], message, cohort, given, step, info
                )
        return message.update, tuple(after), info

    def sensitivity(state=None):
        return bounds(before if state is None else state).total

    def explain() -> str:
        return _explained(links, bounds(before))

    return Aggregator(
        init=init,
        memory=memory,
        client=client,
        collect="sum" if collect is None else collect.collect,
        server=server,
        sensitivity=sensitivity,
        rule=weight.rule,
        release=None if noise is None else noise.release(bounds(before)),
        explain=explain,
        ordered=next((one.label for one in links if one.ordered), ""),
        bends=next(
            (one.label for one in links if one.stage == "compress" or _loses(one)), ""
        ),
        loses=next((one.label for one in links if _loses(one)), ""),
        most=weight.rule.s_max if noise or (collect and collect.fixed_norm) else None,
    )


def _loses(one: link.Link) -> bool:
    return one.stage in ("clip", "clip again") or one.robust


def _completed(links: list[Any]) -> list[link.Link]:
    """The links in checked order, with weights where left out, and the divisor."""
    _check_order(links)
    robust = any(one.robust for one in links)
    stages = [one.stage for one in links]
    if "weight" not in stages:
        at = sum(stage in ("clip", "compress") for stage in stages)
        links.insert(at, weighting.of(rules.mean()))
    if not robust:
        links.append(weighting.divide(_only(links, "weight").rule))
    return links


def _check_order(links: list[Any]) -> None:
    at, last = -1, None
    for one in links:
        if not isinstance(one, link.Link):
            cure = "call the factory, such as clipping.clip(1.0)"
            _validate.fail("chain", one, "is not a link", cure)
        stage = one.stage
        if stage == "divide":
            cure = "leave it out: the rule of the weights says what divides"
            _validate.fail("chain", one.label, "is put last by the chain", cure)
        places = [_STAGES.index(stage)]
        if stage == "clip" and at == _STAGES.index("compress"):
            places = [_STAGES.index("clip again")]
        if places[0] <= at and last is not None:
            same = places[0] == at
            _refuse(
                one,
                "comes " + ("beside" if same else "after"),
                last,
                f"keep one of the two: the order is {ORDER}"
                if same
                else f"put it before: the order is {ORDER}",
            )
        if places[0] == _STAGES.index("clip again") and one.bit_stddev is not None:
            cure = "clip again to a fixed norm, clipping.clip(C)"
            _refuse(one, "tracks a norm after", last, cure)
        at, last = places[0], one


def _check_pairs(links, weight, collect, noise, tracked) -> None:
    clips = [one for one in links if one.stage == "clip"]
    stacked = collect is not None and collect.robust
    if stacked and weight.rule.name != rules.mean().name:
        cure = "use weighting.of(mean()): robust rules count clients, one each"
        _refuse(weight, "cannot weight the rows of", collect, cure)
    if collect is not None and collect.fixed_norm and tracked:
        cure = "use clipping.clip(C): the bound on overflow is checked beforehand"
        _refuse(tracked[0], "moves the clip norm under", collect, cure)
    if collect is not None and collect.fixed_norm:
        _check_bounded(links, clips, weight, collect)
    if noise is None:
        return
    if stacked:
        cure = "leave out one of the two: a robust rule declares no sensitivity"
        _refuse(noise, "needs the sensitivity of", collect, cure)
    _check_bounded(links, clips, weight, noise)
    if weight.rule.total is None:
        cure = "use a rule with a constant, such as weighting.of(mean(cohort=m))"
        _refuse(weight, "divides by what depends on who came, after", noise, cure)
    if tracked and not tracked[0].bit_stddev:
        cure = "give bit_stddev a twentieth of the expected cohort"
        _refuse(tracked[0], "releases exact bits beside", noise, cure)
    if tracked and noise.fixed_norm:
        cure = "use clipping.clip(C), or dp.central"
        _refuse(tracked[0], "moves the clip norm under", noise, cure)
    if (
        collect is not None
        and collect.fixed_norm
        and noise.label.startswith("dp.local")
    ):
        cure = "use dp.central or dp.discrete"
        _refuse(noise, "would come before the lattice of", collect, cure)


def _check_bounded(links, clips, weight, needs: link.Link) -> None:
    """Raises where `needs` has to know the norm of a client's share, and cannot."""
    if weight.largest_weight is None:
        cure = "use weighting.of(mean(cohort=m)) or capped_data"
        _refuse(weight, "has no largest weight for", needs, cure)
    if not clips:
        cure = "put clipping.clip(C) first"
        _refuse(needs, "needs a bound on", weight, cure, "the messages of ")
    compress = _only(links, "compress")
    if compress is not None and compress.bound(None, 1.0) is None:
        if links.index(clips[-1]) < links.index(compress):
            cure = "put clipping.clip(C) after the compression as well"
            _refuse(compress, "can raise the norm that is bounded for", needs, cure)


def _refuse(one, how: str, other, cure: str, of: str = "") -> None:
    raise ValueError(f"chain: {one.label} {how} {of}{other.label}; {cure}.")


def _only(links, stage: str) -> Any:
    return next((one for one in links if one.stage == stage), None)


def _sanitised(update: link.Update) -> tuple[link.Message, link.Record]:
    scale, unit = clipping.norm(update)
    finite = jnp.isfinite(unit)
    clean = _zero_unless(finite, update)
    bits = jnp.float32(32.0 * link.size(update))
    record = link.Record(
        norm=jnp.where(finite, scale * unit, 0.0),
        clipped=jnp.zeros((), bool),
        finite=finite,
        bits_up=bits,
        bits_down=bits,
    )
    return link.Message(clean), record


def _zero_unless(fine: jax.Array, update: link.Update) -> link.Update:
    return jax.tree.map(lambda x: jnp.where(fine, x, 0.0), update)


def _finite(tree) -> jax.Array:
    fine = jnp.ones((), bool)
    for leaf in jax.tree.leaves(tree):
        fine = fine & jnp.all(jnp.isfinite(leaf))
    return fine


def _with_bits(message: link.Message, cohort: link.Cohort) -> link.Message:
    """A stack whose bits are summed, whatever the rule for the rest."""
    return message._replace(bits=link.weighted_sum(message, cohort).bits)


def _first_info(given: link.Bounds) -> link.Info:
    def number(x):
        return jnp.asarray(jnp.nan if x is None else x, jnp.float32)

    return link.Info(
        sensitivity=number(given.total),
        noise_stddev=jnp.zeros((), jnp.float32),
        clip_norm=number(given.client),
        aborted=jnp.zeros((), bool),
    )


def _explained(links, given: link.Bounds) -> str:
    lines, bound = [], None
    for one in links:
        if one.stage == "noise":
            release = one.release(given)
            lines.append(f"{one.label}: stddev {release.noise_multiplier:g} times that")
            continue
        new = one.bound(None, bound)
        if one.stage == "divide":
            lines.append(one.label)
        elif new is None or one.robust:
            lines.append(f"{one.label}: no bound on what one client adds")
        else:
            lines.append(f"{one.label}: a client adds at most {new:g} in L2")
        bound = new
    return "\n".join(lines)


def _check_floats(update: link.Update) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(update):
        if leaf.dtype not in (jnp.float32, jnp.float64):
            _validate.fail(
                f"message{jax.tree_util.keystr(path)}.dtype",
                str(leaf.dtype),
                "must be float32, or float64",
                "subtract the models in float32",
            )
