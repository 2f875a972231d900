"""The only place that knows what changes between transformers versions.

Every part of transformers that its documentation does not promise to users is named here and nowhere else in the
package: private methods, argument names, cache classes and their fields, output fields, attributes of logits
processors. Each such point of contact is declared with `points.uses`; it is detected by looking it up, not by version
number alone. A missing name becomes a stand-in, so that importing always works.

    versions.py    the installed transformers: too old, proved, or newer than proved
    points.py      the table of points of contact, and how each is looked up
    caches.py      cache layers: their kinds and fields
    calls.py       what `generate` prepares, and what a model's forward takes and returns
    processors.py  logits processors and stopping criteria
    models.py      attributes of models and configurations, rotary embeddings, attention functions
    serving.py     transformers' own server
    hooks.py       how a draft passed to `generate` reaches this package
    guard.py       whether a draft may be used with this version at all
    contract.py    checks every point, and drafting on tiny models: `python -m hf_eagle3.compat`
"""

from .versions import refuse_older


refuse_older()
