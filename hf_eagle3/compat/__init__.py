"""The only place that knows what changes between transformers versions.

Everything of transformers that its documentation does not promise to users is named here and nowhere else in the
package: private methods, names of arguments, cache classes and their fields, output fields, what logits processors
keep inside. Each such point of contact is a line of `points.py`; it is found by looking for it, never by the version
alone. A name that is missing becomes a stand-in, so that importing always works.

    versions.py    which transformers this is: too old, proved, or newer than that
    points.py      the table of points of contact, and how each is found
    caches.py      cache layers: their kinds and fields
    calls.py       what `generate` prepares and a model's forward takes and returns
    processors.py  logits processors and stopping criteria
    models.py      what models say about themselves, rotary embeddings, attention functions
    hooks.py       how a draft given to `generate` reaches this package
    guard.py       whether a draft may be used with this version at all
    contract.py    all points checked on tiny models: `python -m hf_eagle3.compat`
"""

from .versions import refuse_older


refuse_older()
