"""What vLLM does with a draft that breaks a rule of `hub/engines.py`, and with those that only others serve wrongly.

    norm_before_residual  ->  vLLM accepts what we accept
    q_norm, plain format  ->  vLLM raises
    taps in another order ->  vLLM serves it, and accepts other drafts

Nightly: a minute or two of CPU time per case, in an environment with vLLM (`test_engines.py`).
"""

import os

import pytest
from engine_rules import CASES, DIFFERS, ERROR, SAME, changed_draft, measure

from hf_eagle3.hub.engines import RULES, Case, TargetFacts, findings
from hf_eagle3.hub.formats import EAGLE3, VLLM


FACTS = TargetFacts("org/target", None, ("LlamaForCausalLM",), 24, 1024)


@pytest.mark.parametrize("name", CASES)
def test_what_is_measured_is_what_the_rules_say(name):
    """The table of cases and the table of rules agree about vLLM."""
    case = CASES[name]
    config = changed_draft(case).config
    if case.without_ids:
        config = config.changed({"target_layer_ids": None})
    found = {f.rule.name: f.rule.silent for f in findings(Case(config, case.dialect, FACTS), [VLLM])}
    assert found == ({} if case.expected == SAME else {name: case.expected == DIFFERS})


def test_every_rule_of_vllm_is_measured():
    assert {rule.name for rule in RULES if VLLM in rule.engines and EAGLE3 in rule.kinds} == {
        name for name, case in CASES.items() if case.expected in (DIFFERS, ERROR)
    }


@pytest.mark.nightly
@pytest.mark.skipif("HF_EAGLE3_VLLM" not in os.environ, reason="HF_EAGLE3_VLLM does not name an interpreter with vLLM")
@pytest.mark.timeout(7200)
def test_vllm_does_what_the_rules_say():
    results = measure(os.environ["HF_EAGLE3_VLLM"], list(CASES))
    wrong = {name: result for name, result in results.items() if result["found"] != CASES[name].expected}
    assert wrong == {}
    assert all(result.get("same_text", True) for result in results.values())  # a bad draft cannot change the text
