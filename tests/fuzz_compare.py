"""Compares what two runs of a fuzz case left: plain generate's and ours. Knows what is promised, and what is refused.

What rows hold behind their end is plain generate's where it is part of the text; scores, states and cache columns of
ended rows are not compared. Every problem is one line, "kind: detail".
"""

import math
import re

import torch
from fuzz_cases import Case
from fuzz_parts import UserError, WatchingStreamer
from fuzz_run import NEW_TOKENS, OUTPUTS, Turn


TOLERANCE = {"float32": 5e-5, "float64": 1e-5, "bfloat16": math.inf}  # relative to a tensor's largest value
# What may be refused. A message that is not here is a failure: what works must not start to refuse.
REFUSALS = (
    r"`assistant_model` cannot speed up \w+: ",
    r"`output_attentions` with (sliding-window layers|layers that do not attend to every token)",
    r"so the tapped ones cannot be identified",
    r"`output_attentions` with `cache_implementation` 'static' does not go with a draft",
    r"`cache_implementation` 'static' does not go with a draft on \w+",
    r"`cache_implementation` 'static' does not go with the tree mode 'host_chain'",
    r"embedding rows are \d+ wide, the draft is \d+ wide",
    r"call `eval\(\)`",  # no cache while training with checkpoints
    # transformers' own loop, of the tree mode "host_chain", with its own limits
    r"assisted generation is not supported with stateful models",
    r"host_chain",
)


def compared(case: Case, plain: list[Turn], ours: list[Turn]) -> tuple[str, list[str]]:
    """(status, problems) of a case's turns; the first turn with a problem ends the comparison."""
    for number, (theirs, mine) in enumerate(zip(plain, ours, strict=False)):
        status, problems = compared_turn(case, theirs, mine, dead_columns(plain[:number]))
        if problems or status != "same":
            return status, [f"{problem} (turn {number + 1})" if number else problem for problem in problems]
    return "same", []


def compared_turn(case: Case, plain: Turn, ours: Turn, dead: torch.Tensor | None = None) -> tuple[str, list[str]]:
    """(status, problems) of one call; `dead` (B, columns) marks the cache's columns behind ends of earlier turns."""
    problems = [f"changed argument: {name}" for name in set(ours.changed) - set(plain.changed)]
    problems += [f"warning: {text}" for text in sorted(ours.warned - plain.warned)]
    if plain.error is not None or ours.error is not None:
        status, found = errors(case, plain.error, ours.error, is_drafted=ours.is_drafted)
        if isinstance(ours.error, UserError) and not case.only_types:
            found += after_user_error(plain, ours)
        return status, problems + found
    problems += types(plain, ours)
    if case.only_types or problems:
        return "same", problems
    if not torch.equal(plain.sequences, ours.sequences):
        problems.append(f"tokens: {ours.sequences.tolist()} for {plain.sequences.tolist()}")
    problems += streams(case, plain, ours)
    if plain.calls != ours.calls and case.mode != "host_chain":  # that loop asks about proposals as well
        problems.append(f"user's function: {first_difference(plain.calls, ours.calls)}")
    if any("tokens" in problem for problem in problems):
        return "same", problems  # the rest follows from it
    if case.mode != "host_chain" and not torch.equal(plain.random_state, ours.random_state):
        problems.append("generator: another state afterwards")
    problems += step_outputs(case, plain, ours)
    problems += caches(case, plain, ours, dead)
    if ours.is_drafted and case.mode != "host_chain":
        problems += statistics(plain, ours)
    return "same", problems


def errors(case: Case, plain: Exception | None, ours: Exception | None, is_drafted: bool) -> tuple[str, list[str]]:
    """(status, problems) where at least one of both calls raised."""
    if ours is None and case.implementation == "static" and not isinstance(plain, ValueError):
        return "refused", []  # transformers' own static cache does not fit the model; a draft does without
    if ours is None:
        return "failed", [f"no error: plain generate raises {one_line(plain)}"]
    if plain is not None:
        if type(ours) is type(plain) or (is_drafted and isinstance(ours, ValueError)):
            return "both raise", []
        return "failed", [f"other error: {one_line(ours)} for {one_line(plain)}"]
    if isinstance(ours, ValueError) and any(re.search(pattern, str(ours)) for pattern in REFUSALS):
        return "refused", []
    # In float64 transformers' additive masks overflow to -inf: plain generate takes the argmax of NaN there.
    if case.dtype == "float64" and case.rows > 1 and "target's logits are NaN" in str(ours):
        return "refused", []
    return "failed", [f"error: {one_line(ours)}"]


def after_user_error(plain: Turn, ours: Turn) -> list[str]:
    """The user's functions were asked the same, and a user's cache is an ordinary one that holds what was written."""
    problems = [] if plain.calls == ours.calls else [f"user's function: {first_difference(plain.calls, ours.calls)}"]
    for (kind, theirs), (my_kind, mine) in zip(plain.cache or (), ours.cache or (), strict=True):
        if kind != my_kind:
            problems.append(f"cache after an error: {my_kind} for {kind}")
        elif kind == "DynamicLayer":
            width = min(theirs["keys"].shape[2], mine["keys"].shape[2])
            if text := unequal(theirs["keys"][:, :, :width], mine["keys"][:, :, :width], 3e-4):
                problems.append(f"cache after an error: keys {text}")
    return problems


def one_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def first_difference(plain, ours) -> str:
    """Where two nested lists differ first."""
    if not isinstance(plain, (list, tuple)) or not isinstance(ours, (list, tuple)):
        return f"{ours} for {plain}"
    for index, (theirs, mine) in enumerate(zip(plain, ours, strict=False)):
        if theirs != mine:
            return f"[{index}] {first_difference(theirs, mine)}"
    return f"{len(ours)} entries for {len(plain)}"


def types(plain: Turn, ours: Turn) -> list[str]:
    """Kinds, names, dtypes and shapes of what is returned."""
    problems = []
    if isinstance(plain.out, torch.Tensor) != isinstance(ours.out, torch.Tensor):
        return [f"type: {type(ours.out).__name__} for {type(plain.out).__name__}"]
    if not isinstance(plain.out, torch.Tensor):
        if not isinstance(ours.out, type(plain.out)):
            problems.append(f"type: {type(ours.out).__name__} is no {type(plain.out).__name__}")
        if plain.out.keys() != ours.out.keys() - {"speculation"}:
            problems.append(f"type: {sorted(ours.out.keys())} for {sorted(plain.out.keys())}")
    if (plain.sequences.dtype, len(plain.sequences)) != (ours.sequences.dtype, len(ours.sequences)):
        problems.append(f"type: sequences {ours.sequences.dtype} {len(ours.sequences)} rows")
    if plain.is_users_cache != ours.is_users_cache:
        problems.append("cache: another object than the user's")
    return problems


def streams(case: Case, plain: Turn, ours: Turn) -> list[str]:
    """What a streamer was given."""
    if plain.streamer is None:
        return []
    theirs, mine = plain.streamer.events, ours.streamer.events
    if case.mode == "host_chain":  # transformers' own loop puts a cycle's tokens at once
        theirs, mine = ([v for e in events for v in torch.tensor(e[-1]).flatten().tolist() if e != "end"]
                        for events in (theirs[:-1], mine[:-1]))  # fmt: skip
    return [] if theirs == mine else [f"streamer: {first_difference(theirs, mine)}"]


# -- values per step --------------------------------------------------------------------------------------------------


def step_outputs(case: Case, plain: Turn, ours: Turn) -> list[str]:
    """Scores, logits, hidden states and attentions of every step, of rows that have not ended."""
    if isinstance(plain.out, torch.Tensor):
        return []
    problems = []
    for name in OUTPUTS:
        theirs, mine = plain.out.get(name), ours.out.get(name)
        if (theirs is None) != (mine is None) or (theirs is not None and len(theirs) != len(mine)):
            found = None if mine is None else len(mine)
            problems.append(f"{name}: {found} steps for {None if theirs is None else len(theirs)}")
            continue
        for step, (expected, value) in enumerate(zip(theirs or (), mine or (), strict=True)):
            live = [row for row, end in enumerate(plain.ends) if step < end]
            difference = nested(expected, value, live, len(plain.ends), TOLERANCE[case.dtype])
            if difference:
                problems.append(f"{name}: step {step} {difference}")
                break
    return problems


def nested(plain, ours, live: list[int], num_rows: int, tolerance: float) -> str:
    """The first difference of two tensors or nests of them, among `live` rows; empty: none."""
    if isinstance(plain, (tuple, list)):
        if not isinstance(ours, (tuple, list)) or len(plain) != len(ours):
            return f"{type(ours).__name__} of {len(ours) if isinstance(ours, (tuple, list)) else '-'} for {len(plain)}"
        pairs = enumerate(zip(plain, ours, strict=True))
        found = ((index, nested(*pair, live, num_rows, tolerance)) for index, pair in pairs)
        return next((f"[{index}] {text}" for index, text in found if text), "")
    if not isinstance(plain, torch.Tensor) or not isinstance(ours, torch.Tensor):
        return "" if plain is ours is None else f"{type(ours).__name__} for {type(plain).__name__}"
    if plain.shape != ours.shape or plain.dtype != ours.dtype:
        return f"{ours.dtype} {tuple(ours.shape)} for {plain.dtype} {tuple(plain.shape)}"
    if len(live) < num_rows:
        axis = 0 if plain.shape[0] == num_rows else 1  # Gemma 3n: streams first
        plain, ours = plain.transpose(0, axis)[live], ours.transpose(0, axis)[live]
    return unequal(plain, ours, tolerance)


def unequal(plain: torch.Tensor, ours: torch.Tensor, tolerance: float) -> str:
    """How far two tensors of one shape are apart; empty: close enough, and not finite at the same places."""
    if not plain.is_floating_point():
        return "" if torch.equal(plain, ours) else "other whole numbers"
    plain, ours = plain.detach().double(), ours.detach().double()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        if not torch.equal(kind(plain), kind(ours)):
            return f"{kind.__name__} at {int(kind(ours).sum())} places for {int(kind(plain).sum())}"
    finite = plain.isfinite()
    if not finite.any():
        return ""
    scale = max(1.0, float(plain[finite].abs().clamp_max(1e6).max()))
    worst = float((plain[finite] - ours[finite]).abs().max())
    return f"differs by {worst:.2g}, largest {scale:.2g}" if worst > tolerance * scale else ""


# -- caches -----------------------------------------------------------------------------------------------------------


def dead_columns(turns: list[Turn]) -> torch.Tensor | None:
    """(B, columns) where earlier turns' rows had ended; `None` without an earlier turn."""
    if not turns:
        return None
    turn, width = turns[-1], turns[-1].mask.shape[1]
    behind = torch.arange(turn.sequences.shape[1] - width) >= torch.tensor(turn.ends)[:, None]
    behind = torch.cat((torch.zeros(len(behind), width, dtype=torch.bool), behind), dim=1)
    return torch.nn.functional.pad(behind, (0, NEW_TOKENS))


def caches(case: Case, plain: Turn, ours: Turn, dead: torch.Tensor | None) -> list[str]:
    """Types and contents of what is returned or was the user's, up to each row's end."""
    if plain.cache is None or ours.cache is None:
        return [] if plain.cache is ours.cache else ["cache: one of both calls has none"]
    if [kind for kind, _ in plain.cache] != [kind for kind, _ in ours.cache]:
        return [f"cache: {first_difference([k for k, _ in plain.cache], [k for k, _ in ours.cache])}"]
    live = live_columns(plain, dead)
    whole = [row for row in range(len(live)) if live[row, plain.mask.shape[1] :].all()]
    if dead is not None:
        whole = [row for row in whole if not dead[row].any()]
    for place, ((kind, theirs), (_, mine)) in enumerate(zip(plain.cache, ours.cache, strict=True)):
        where = f"layer {place - 1}" if place else "cache"
        for name in theirs:
            if name == "record_past" and case.mode == "host_chain":  # transformers' own loop leaves it on
                continue
            if kind == "DynamicSlidingWindowLayer" and case.mode == "host_chain":  # and more than the window in it
                continue
            if kind == "StaticSlidingWindowLayer" and name == "cumulative_length":  # not read where the window is full
                continue
            if name not in mine:
                return [f"cache: {where} has no {name}"]
            text = held(theirs[name], mine[name], live, whole, TOLERANCE[case.dtype])
            if text:
                return [f"cache: {where} {name} {text}"]
    return []


def live_columns(turn: Turn, dead: torch.Tensor | None) -> torch.Tensor:
    """(B, cached columns) that hold a row's own tokens."""
    width = turn.mask.shape[1]
    new = max(turn.ends)
    live = torch.arange(new) < torch.tensor(turn.ends)[:, None]
    live = torch.cat((turn.mask.bool(), live), dim=1)[:, :-1]
    if dead is not None:
        live[:, :width] &= ~dead[:, :width]
    return live


def held(plain, ours, live: torch.Tensor, whole: list[int], tolerance: float) -> str:
    """The difference between two entries of a cache: all of rows that ran to the end, live columns of the others."""
    if not isinstance(plain, torch.Tensor) or not isinstance(ours, torch.Tensor):
        same = isinstance(ours, torch.Tensor) == isinstance(plain, torch.Tensor) and plain == ours
        return "" if same else f"{ours} for {plain}"
    if plain.shape != ours.shape or plain.dtype != ours.dtype:
        return f"{ours.dtype} {tuple(ours.shape)} for {plain.dtype} {tuple(plain.shape)}"
    num_rows, num_columns = live.shape
    if plain.dim() == 0 or plain.shape[0] != num_rows:
        return unequal(plain, ours, tolerance)
    if text := unequal(plain[whole], ours[whole], tolerance):
        return f"of rows that ran to the end {text}"
    early = [row for row in range(num_rows) if row not in whole]
    if plain.dim() != 4 or plain.shape[2] < min(num_columns, 2):
        return ""  # states, of which an ended row has no live part
    columns = plain.shape[2]
    seen = live[:, -columns:] if columns < num_columns else torch.nn.functional.pad(live, (0, columns - num_columns))
    for row in early:
        if text := unequal(plain[row][:, seen[row]], ours[row][:, seen[row]], tolerance):
            return f"of a row that ended early {text}"
    return ""


# -- statistics -------------------------------------------------------------------------------------------------------


def statistics(plain: Turn, ours: Turn) -> list[str]:
    """What must hold of every call's statistics and cycle records."""
    stats, ends = ours.stats, plain.ends
    if stats.mode == "plain":
        return [] if stats.num_cycles == 0 else ["statistics: cycles of a plain call"]
    facts = {
        "mode": stats.mode in ("tree", "chain"),
        f"generated_lengths {stats.generated_lengths} for {ends}": stats.generated_lengths == ends,
        f"num_committed_tokens {stats.num_committed_tokens} for {sum(ends) - len(ends)}": (
            stats.num_committed_tokens == sum(ends) - len(ends)
        ),
        "num_cycles": stats.num_cycles == sum(map(len, stats.accepted_tokens)),
        "histogram": sum(stats.histogram) == stats.num_cycles
        and sum(n * count for n, count in enumerate(stats.histogram)) == sum(map(sum, stats.accepted_tokens)),
        "acceptance_length": not stats.num_cycles
        or math.isclose(stats.acceptance_length, stats.num_committed_tokens / stats.num_cycles),
        "num_iterations": stats.num_iterations >= max(map(len, stats.accepted_tokens)),
        "phase_seconds": all(seconds >= 0 for seconds in stats.phase_seconds.values()),
    }
    for row, end in enumerate(ends):
        accepted, depths, cuts = stats.accepted_tokens[row], stats.tree_depths[row], stats.cut[row]
        most = sum(accepted) + len(accepted)
        facts[f"row {row} tokens {accepted} cut {cuts} for {end - 1}"] = most - sum(cuts) <= end - 1 <= most
        facts[f"row {row} depths"] = all(a <= depth for a, depth in zip(accepted, depths, strict=True))
    problems = [f"statistics: {name}" for name, holds in facts.items() if not holds]
    if isinstance(ours.streamer, WatchingStreamer):
        problems += records(plain, ours)
    return problems


def records(plain: Turn, ours: Turn) -> list[str]:
    """What a `CycleStreamer` saw: each row's cycles in order, its tokens up to its end and no others."""
    problems, width = [], plain.sequences.shape[1] - max(plain.ends)
    for row, end in enumerate(plain.ends):
        seen = [record for record in ours.streamer.records if record.row == row]
        cycles, tokens = [record.cycle for record in seen], [token for record in seen for token in record.tokens]
        if cycles != list(range(-1, len(seen) - 1)):
            problems.append(f"cycle records: row {row} has cycles {cycles}")
        if tokens != plain.sequences[row, width : width + end].tolist():
            expected = plain.sequences[row, width : width + end].tolist()
            problems.append(f"cycle records: row {row} has tokens {tokens} for {expected}")
        if len(seen) != len(ours.stats.accepted_tokens[row]) + 1:
            problems.append(f"cycle records: row {row} has {len(seen)} of {len(ours.stats.accepted_tokens[row]) + 1}")
        for record in seen:
            path = [0, *record.accepted_nodes]
            pairs = zip(path, path[1:], record.tokens, strict=False)
            if len(record.accepted_nodes) != record.num_accepted_tokens or any(
                (record.tree_parents[node], record.tree_tokens[node]) != (parent, token)
                for parent, node, token in pairs
            ):
                problems.append(f"cycle records: row {row} cycle {record.cycle} took a path that is not in its tree")
    return problems
