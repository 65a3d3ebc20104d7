"""Augmentation inside one example's loss: several views of it, one gradient.

    loss_i = (1/K) sum_k loss(params, augment(key_k, x_i), key'_k)

With the mean inside the loss an example still has one gradient, which is clipped once:
K views cost no more privacy than one, and average out what differs between them (De et
al. 2022). A mean over views made beforehand, as examples of their own, would let one
record move the sum by K times the clip norm.

An augmentation is a pure function (key, example) -> example of the same shapes.

Dimension key: K views, H and W of an image, T tokens.

Example::

    loss = augment.average(task.loss, augment.shift(2, flip=True), copies=8)
    clipper = clipping.clipped_grad(loss, l2_clip_norm=1.0)

References: https://arxiv.org/abs/2204.13650
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trustml import _validate, task

Augment = Callable[[Any, task.Example], dict[str, Any]]


def average(
    loss: Callable[[Any, Any, Any], jax.Array], augment: Augment, copies: int
) -> Callable[[Any, Any, Any], jax.Array]:
    """The mean of `loss` over `copies` augmented views of its example.

    Formal guarantees: the result is a loss of one example, so what a clipper says of
      its sensitivity holds unchanged, as long as `augment` looks at nothing but the
      example and its key.

    Args:
      loss: (params, example, key) -> float32[]; one example, no batch axis.
      augment: (key, example) -> example.
      copies: K >= 1; each has keys of its own for `augment` and `loss`.

    Returns:
      A loss of the same form. Memory for activations grows with K.

    Raises:
      ValueError: when built, if copies < 1.
    """
    cure = "1 takes a single view"
    copies = _validate.integer_at_least("train.augmentations", copies, 1, cure)

    def averaged(params, example, key):
        def view(key):
            for_augment, for_loss = jax.random.split(key)
            return loss(params, augment(for_augment, example), for_loss)

        return jnp.mean(jax.vmap(view)(jax.random.split(key, copies)))

    return averaged


def shift(pixels: int, flip: bool = False) -> Augment:
    """Moves `image` f32[H, W, C] by up to `pixels` each way, and may mirror it.

    What is uncovered repeats the edge. Digits and letters should not be mirrored.

    Args:
      pixels: >= 0, the same bound for both directions; each shift is as likely.
      flip: whether to mirror left and right, one time in two.
    """
    pixels = _validate.integer_at_least("pixels", pixels, 0, "4 is usual for 32 x 32")

    def augment(key, example):
        for_shift, for_flip = jax.random.split(key)
        image = example["image"]
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), "edge")
        corner = jax.random.randint(for_shift, (2,), 0, 2 * pixels + 1)
        start = (corner[0], corner[1], jnp.int32(0))
        image = jax.lax.dynamic_slice(padded, start, image.shape)
        if flip:
            mirrored = jax.random.bernoulli(for_flip)
            image = jnp.where(mirrored, image[:, ::-1], image)
        return {**example, "image": image}

    return augment


def word_dropout(rate: float, token: int = 0) -> Augment:
    """Puts `token` in place of each of the words in `tokens` i32[T], with a chance.

    Words stay where they are and `length` is as it was; padding is left alone.

    Args:
      rate: probability of losing a word, in [0, 1).
      token: id that says nothing: 0, which belongs to no word, or the tokenizer's id
        for unknown words.
    """
    rate = _validate.in_half_open_interval("rate", rate, 0, 1, "0.1 is usual")
    token = _validate.integer_at_least("token", token, 0)

    def augment(key, example):
        tokens = example["tokens"]
        lost = jax.random.bernoulli(key, rate, tokens.shape)
        real = jnp.arange(tokens.shape[0]) < example["length"].astype(jnp.int32)
        tokens = jnp.where(lost & real, jnp.asarray(token, tokens.dtype), tokens)
        return {**example, "tokens": tokens}

    return augment
