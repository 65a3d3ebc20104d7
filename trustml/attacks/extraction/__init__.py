"""Canary extraction: can a secret in one training text be read out of the model?

A joint model of intents and slots is trained on data with a canary: a text of known
words with a secret code in it ("my pin code is 4 1 7 7"), inserted a number of times.
The attacker has the model, the known words, the intent and the slots, and looks for the
code of smallest training loss (Parikh, Dupuy, Gupta 2022):

- `canary.pattern`, `canary.draw`, `canary.insert`: the text, its secret, the data.
- `scoring.scorer`: the loss of any codes, of all codes at once; `scoring.marginals`.
- `search.beam`, `search.coordinate_descent`: for codes too many to score.
- `relaxed.gumbel`: the paper's attack, gradients through a relaxed choice of tokens.
- `exposure` (beside this package): ranks, exact p-values, exposure, and a summary that
  refuses to speak without controls.

Example::

    pattern = canary.pattern([*ids('my pin code is'), -1, -1], digits, max_length=16)
    secret = canary.draw(rng.root(), pattern, num_labels=7, code_tags=[[3, 4]])
    data = canary.insert(train, canary.example(pattern, secret), copies=10)
    ...                                                              # train on `data`
    score = scoring.scorer(task, pattern)
    losses = score(params, canary.target(pattern, secret), canary.all_codes(pattern))
    exposure.exact(losses, canary.index(pattern, secret.code)).bits

References: https://arxiv.org/abs/2203.13920
"""
