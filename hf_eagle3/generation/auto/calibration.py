"""How often the target takes a token that the draft gives a probability: learnt within a call.

A draft estimates the target's distribution, not its choice at T=0, and may be over- or underconfident. So the mode
"auto" ranks and counts nodes by corrected chances: a node's chance is the product of the corrected chances of the
tokens that lead to it. On the pair that ships, trees of as many nodes then have an acceptance length 7 % higher at T=0
and 2 % higher when sampling.

Pure tensors, no host synchronisation. Shape letters: A sequences, N nodes.
"""

import torch


# Draft probabilities from 0.99 to 1e-7 in bins a few percent of -log q wide, so that hardly any two of a node's
# children get the same chance; corrections are learnt for `WIDTH` of them at a time.
BINS, FINEST, GROWTH, WIDTH = 128, 0.01, 1.06, 6
# logit(chance) = a + b * logit(q) is assumed at first. Fitted on the pair that ships and on two drafts of a target of
# 260K parameters: (0.9, 1.4), (1.6, 1.8) and (1.6, 1.9) at T=0; (0.35, 1.1), (0.25, 1.1) and (0.2, 1.05) at T=1 with
# shared noise; (-0.3, 0.9), (-0.1, 1.0) and (-0.1, 1.0) at T=1 without.
GREEDY, SHARED_NOISE, OWN_NOISE = (1.4, 1.7), (0.25, 1.1), (0.0, 1.0)
PRIOR_WEIGHT = 4.0  # tokens taken that the assumption counts for, per correction
LOG_SUREST = -0.005  # the highest chance, so that every node scores below its parent


class Calibration:
    """
    Chance that the target takes a child, given that it took the parent, from the draft's own log-probability of it.

    Args:
        device: The draft's.
        assumed: `GREEDY`, `SHARED_NOISE` or `OWN_NOISE`, by how the call chooses and the draft ranks.
    """

    def __init__(self, device: torch.device, assumed: tuple[float, float]):
        distances = torch.tensor([FINEST * GROWTH**i for i in range(BINS)])
        self.edges = -distances.flip(0).to(device)  # rising log-probabilities, as bucketize wants them
        middles = -torch.cat((distances[:1] / 2, (distances[1:] + distances[:-1]) / 2, distances[-1:])).flip(0)
        constant, slope = assumed
        self.assumed = torch.nn.functional.logsigmoid(constant + slope * torch.logit(middles.exp())).to(device)
        self.group = (torch.arange(BINS + 1, device=device) // WIDTH).flip(0)
        self.taken = torch.full((BINS // WIDTH + 1,), PRIOR_WEIGHT, device=device)
        self.expected = self.taken.clone()
        self._table = self.assumed.clamp(max=LOG_SUREST)

    def __call__(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-chances for log-probabilities of any shape, float32."""
        return self._table[self._bins(log_probs)]

    def _bins(self, log_probs: torch.Tensor) -> torch.Tensor:
        return torch.bucketize(log_probs.float().contiguous(), self.edges)

    def observe(self, log_probs: torch.Tensor, is_asked: torch.Tensor, is_taken: torch.Tensor) -> None:
        """
        What came of verified nodes, (A, N) each.

        Args:
            log_probs: The draft's own, of each node given its parent; above 0 where it has none.
            is_asked: Whether the node's parent was taken, so that the target chose among its children.
            is_taken: Whether the node was.
        """
        is_asked = is_asked & (log_probs <= 0)  # others' chances do not come from the draft
        bins = self._bins(log_probs).flatten()
        groups = self.group[bins]
        self.expected.index_add_(0, groups, self.assumed[bins].exp() * is_asked.flatten())
        self.taken.index_add_(0, groups, (is_taken & is_asked).flatten().to(self.taken.dtype))
        correction = (self.taken / self.expected).log()
        self._table = (self.assumed + correction[self.group]).clamp(max=LOG_SUREST)
