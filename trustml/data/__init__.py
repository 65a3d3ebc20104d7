"""Data: public sets by name, a user's own file, tokenizers and batches; all NumPy.

Five names to know:

* `datasets.load(name)`: SNIPS (inside this package), ATIS, nlu_eval, AG News, SST-2,
  CLINC150, scikit-learn's digits, MNIST and Adult, prepared as TFDS builders over local
  files, without TensorFlow. Files are looked for under `$TRUSTML_DATA`; nothing is
  downloaded.
* `files.load(path)`: one TSV, CSV or JSONL file with named columns, without code.
* `dataset.Dataset`: what both return: columns for each split (`train['tokens']`, ...),
  names of labels and slots, the tokenizer, groups to report accuracy by.
* `tokenizers.hashed`, `.word`, `.pretrained`: the first and last are public; a
  vocabulary of words counted in private text is itself a release.
* `batches.gather`, `.evaluation`: batches of one fixed shape, with a mask.

What is estimated from training data is a release that no epsilon covers. So nothing
here is: features are scaled by public constants, hashed tokens need no vocabulary,
splits depend on one row each, length groups have fixed bounds. The exceptions, the set
of labels and slots and `vocabulary='train'`, are named where they arise.

Example::

    from trustml.data import batches, datasets
    data = datasets.load('snips', max_length=16, vocabulary_size=8192)
    for batch, mask in batches.evaluation(data.test, 256):
        batch['tokens'].shape, mask.shape            # (256, 16), (256,)
"""
