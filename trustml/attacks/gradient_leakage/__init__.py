"""Gradient leakage: what the updates of clients tell a federated server.

A server that holds the public model sees an update, the gradient or the change of the
parameters after some local steps. It needs no training data to read it:

- `rows.nonzero(update)`: the rows of the embedding table that moved are exactly the
  tokens of the client. One pass, any batch size; clipping and summing over clients do
  not hide it. `rows.score` puts it beside a random set of the same size.
- `labels.of_bias(gradient)`: the label of a single example; `labels.counts` for more.
- `matching.matcher(task, template)`: DLG and TAG, a search for inputs whose gradient is
  the one that was seen. It can tell order and repetitions, which rows do not.
  `smooth.check` says beforehand whether the model can be searched.
- `overlap.compare(found, true, claim)`: token recall, ROUGE, exact recovery, always
  beside what the rows alone gave.
- `sight.server(updates, ...)`: what is seen under clipping, noise and secure
  aggregation.

Example::

    seen = sight.server(gradients, l2_clip_norm=1.0, secure_aggregation=True)
    claim = rows.nonzero(seen['table']['embedding'])
    rows.score(claim, true_tokens, vocab_size)      # precision, recall, chance

Neither clipping nor secure aggregation alone protects the set of tokens; noise that
gives user-level differential privacy does, and only its guarantee bounds every attack.
"""
