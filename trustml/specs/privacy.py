"""What is promised, and by which mechanism."""

import dataclasses

from trustml import _validate

UNITS = ("example", "user")
RELATIONS = ("add_or_remove_one", "replace_one", "replace_special")
RULES = ("flat", "per_layer", "automatic", "psac", "quantile")
METHODS = ("auto", "book_keeping", "ghost", "vmap")
SAMPLERS = ("poisson", "fixed_size", "shuffled", "truncated_poisson", "balls_in_bins")
NOISE_SCHEDULES = ("constant", "exponential", "inverse", "stairs")
ACCOUNTANTS = ("pld", "rdp", "monte_carlo")

# The relations under which a sampler's event is known; any where it is not listed.
_RELATIONS_OF = {
    "fixed_size": ("replace_one",),
    "shuffled": ("replace_special",),
    "truncated_poisson": ("replace_special", "replace_one"),
    "balls_in_bins": ("add_or_remove_one", "replace_special"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """What is promised; see `trustml.privacy`.

    Attributes:
      enabled: False trains without privacy.
      epsilon: the budget, from which noise is calibrated; or None.
      noise_multiplier: noise_stddev / l2_clip_norm, from which epsilon follows; or
        None.
      delta: in (0, 1); below 1 / number of examples to mean anything.
      relation: one of `RELATIONS`, the neighbors that are hard to tell apart.
      unit: one of `UNITS`, what neighbors differ by: a row, or all rows with one value
        in `data.user_column`, whose mean is clipped as one.
      max_examples_per_user: rows of a user that are learnt from, chosen at random from
        that user's own where there are more.
      l2_clip_norm: bound of one example's gradient, or one user's.
      rule: one of `RULES`, from norms to factors.
      method: one of `METHODS`, the way to the same numbers.
      microbatch_size: examples per chunk of method 'vmap'; 0 = all at once.
      clip_quantile: the quantile of the norms that rule 'quantile' tracks, in (0, 1).
      group_size: examples of a micro-batch whose mean is clipped as one (eDP-SGD, with
        its weaker guarantee); 0 clips every example.
      group_clip_norm: clip norm of such means in experiment 'compare', where
        `l2_clip_norm` is that of examples; 0 takes the same.
      noise_schedule: one of `NOISE_SCHEDULES`, over epochs of 1 / sample rate steps.
      noise_decay: rho of the schedule: the factor of an epoch ('exponential'), of five
        ('stairs'), or the rate of 1 / (1 + rho epoch) ('inverse').
      bands: b > 1 correlates the noise over b steps (`privacy.correlated_noise`) and
        draws step t from part t mod b of the examples; 1: independent noise.
      grid_bits: b > 0 rounds sums to a grid, for which sensitivity grows by at most
        1 + 2^-b, and adds an exact discrete Gaussian (`privacy.discrete_gaussian`, for
        small models; 12 is usual); 0: Gaussian noise in float32.
      sampler: one of `SAMPLERS`.
      accountant: one of `ACCOUNTANTS`; 'monte_carlo' goes with 'balls_in_bins' alone.
      noise_seed: None takes 128 secret bits from the operating system; a number makes
        the run reproducible and its noise NOT secret.
      trainable: globs of parameter paths to train; empty = all, or what
        `model.adapter` trains.
      check: compare the clipper with the plain per-example gradient once, at the start.
    """

    enabled: bool = True
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    relation: str = "add_or_remove_one"
    unit: str = "example"
    max_examples_per_user: int = 16
    l2_clip_norm: float = 1.0
    rule: str = "flat"
    method: str = "auto"
    microbatch_size: int = 0
    clip_quantile: float = 0.5
    group_size: int = 0
    group_clip_norm: float = 0.0
    noise_schedule: str = "constant"
    noise_decay: float = 0.0
    bands: int = 1
    grid_bits: int = 0
    sampler: str = "poisson"
    accountant: str = "pld"
    noise_seed: int | None = None
    trainable: tuple[str, ...] = ()
    check: bool = True

    def __post_init__(self):
        off = "set privacy.enabled=False to train without privacy"
        if self.epsilon is not None:
            _validate.positive("privacy.epsilon", self.epsilon, off)
        if self.noise_multiplier is not None:
            if self.noise_multiplier == 0:
                gives = "gives epsilon=inf"
                _validate.fail("privacy.noise_multiplier", 0.0, gives, off)
            _validate.positive("privacy.noise_multiplier", self.noise_multiplier, off)
        if self.epsilon is not None and self.noise_multiplier is not None:
            bound = (
                f"and privacy.noise_multiplier={self.noise_multiplier!r} are both set"
            )
            cure = "set one of them and give None to the other, which follows from it"
            _validate.fail("privacy.epsilon", self.epsilon, bound, cure)
        cure = "1e-5 is usual; it must be well below 1 / number of examples"
        _validate.in_open_interval("privacy.delta", self.delta, 0, 1, cure)
        _validate.one_of("privacy.relation", self.relation, RELATIONS)
        _validate.positive("privacy.l2_clip_norm", self.l2_clip_norm, "1.0 is usual")
        cure = "squared norms must fit float32; rescale it, and the loss"
        _validate.in_half_open_interval(
            "privacy.l2_clip_norm", self.l2_clip_norm, 1e-12, 1e12, cure
        )
        _validate.one_of("privacy.rule", self.rule, RULES)
        _validate.one_of("privacy.method", self.method, METHODS)
        _validate.integer_at_least(
            "privacy.microbatch_size", self.microbatch_size, 0, "0 takes all at once"
        )
        cure = "0.5 is the median"
        _validate.in_open_interval(
            "privacy.clip_quantile", self.clip_quantile, 0, 1, cure
        )
        _validate.one_of("privacy.sampler", self.sampler, SAMPLERS)
        self._check_group_size()
        self._check_unit()
        self._check_noise_schedule()
        self._check_bands()
        _validate.one_of("privacy.accountant", self.accountant, ACCOUNTANTS)
        self._check_grid()
        known = _RELATIONS_OF.get(self.sampler, RELATIONS)
        if self.enabled and self.relation not in known:
            bound = f"does not go with privacy.sampler={self.sampler!r}"
            cure = f"set privacy.relation={known[0]!r} or privacy.sampler='poisson'"
            _validate.fail("privacy.relation", self.relation, bound, cure)
        if self.noise_seed is not None:
            cure = "None takes secret bits from the operating system"
            _validate.integer_at_least("privacy.noise_seed", self.noise_seed, 0, cure)
            if self.noise_seed >= 2**128:
                _validate.fail(
                    "privacy.noise_seed", self.noise_seed, "must be < 2**128", cure
                )

    def _check_bands(self):
        cure = "1 is independent noise"
        _validate.integer_at_least("privacy.bands", self.bands, 1, cure)
        if self.bands == 1:
            return
        others = {
            "privacy.sampler": self.sampler != "poisson" and self.sampler,
            "privacy.group_size": self.group_size,
            "privacy.noise_schedule": self.noise_schedule != "constant"
            and self.noise_schedule,
            "privacy.rule": self.rule == "quantile" and self.rule,
        }
        for field, value in others.items():
            if value:
                bound = f"does not go with privacy.bands={self.bands}"
                _validate.fail(field, value, bound, "set privacy.bands=1")

    def _check_unit(self):
        _validate.one_of("privacy.unit", self.unit, UNITS)
        field, most = "privacy.max_examples_per_user", self.max_examples_per_user
        _validate.integer_at_least(field, most, 1, "16 is usual")
        if self.unit == "user" and self.group_size:
            bound = "does not go with privacy.unit='user'"
            cure = "0 clips every user's mean"
            _validate.fail("privacy.group_size", self.group_size, bound, cure)

    def _check_grid(self):
        field, cure = "privacy.grid_bits", "0 is Gaussian noise in float32"
        _validate.integer_at_least(field, self.grid_bits, 0, cure)
        if not self.grid_bits:
            return
        if self.grid_bits > 30:
            _validate.fail(field, self.grid_bits, "must be at most 30", "12 is usual")
        others = {
            "privacy.accountant": self.accountant != "rdp" and self.accountant,
            "privacy.sampler": self.sampler not in ("poisson", "shuffled")
            and self.sampler,
            "privacy.noise_schedule": self.noise_schedule != "constant"
            and self.noise_schedule,
            "privacy.bands": self.bands > 1 and self.bands,
            "privacy.rule": self.rule == "quantile" and self.rule,
        }
        cures = {"privacy.accountant": "use 'rdp', which has a bound for it"}
        for name, value in others.items():
            if value and self.enabled:
                bound = f"does not go with privacy.grid_bits={self.grid_bits}"
                cure = cures.get(name, "set privacy.grid_bits=0")
                _validate.fail(name, value, bound, cure)

    def _check_group_size(self):
        field = "privacy.group_size"
        cure = "0 clips every example"
        _validate.integer_at_least(field, self.group_size, 0, cure)
        if self.group_size == 1:
            _validate.fail(field, 1, "is plain DP-SGD", "set it to 0")
        if self.group_size and self.sampler != "poisson":
            bound = f"does not go with privacy.sampler={self.sampler!r}"
            _validate.fail(field, self.group_size, bound, "use 'poisson'")
        norm = "privacy.group_clip_norm"
        _validate.non_negative(norm, self.group_clip_norm, "0 takes l2_clip_norm")
        if self.group_clip_norm and not self.group_size:
            bound = "has no effect with privacy.group_size=0"
            _validate.fail(norm, self.group_clip_norm, bound, "set a group size")

    def _check_noise_schedule(self):
        _validate.one_of("privacy.noise_schedule", self.noise_schedule, NOISE_SCHEDULES)
        field, rho = "privacy.noise_decay", self.noise_decay
        if self.noise_schedule == "constant":
            if rho:
                bound = "has no effect with privacy.noise_schedule='constant'"
                _validate.fail(field, rho, bound, "choose a schedule or set it to 0")
            return
        _validate.positive(field, rho, "0.9 is usual")
        if rho > 1 and self.noise_schedule != "inverse":
            _validate.fail(field, rho, "must be at most 1", "noise decays")
        if self.sampler in ("shuffled", "balls_in_bins"):
            bound = f"does not go with privacy.sampler={self.sampler!r}"
            field = "privacy.noise_schedule"
            _validate.fail(field, self.noise_schedule, bound, "use 'poisson'")
