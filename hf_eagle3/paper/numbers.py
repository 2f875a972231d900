"""The paper's own numbers, which stand beside ours. Source: EAGLE-3 (arXiv 2503.01840), tables 1 to 3."""

# Mean column of Table 1, (speedup, tau) by temperature: Vicuna 13B, which has the most methods.
TABLE_1 = {
    0.0: {
        "SpS": (1.92, 2.24),
        "PLD": (1.74, 1.80),
        "Medusa": (2.12, 2.51),
        "Lookahead": (1.62, 1.67),
        "Hydra": (2.80, 3.50),
        "EAGLE": (3.05, 3.96),
        "EAGLE-2": (4.22, 4.83),
        "EAGLE-3": (5.51, 6.62),
    },
    1.0: {"SpS": (1.60, 1.84), "EAGLE": (2.44, 3.45), "EAGLE-2": (3.76, 4.41), "EAGLE-3": (4.65, 5.67)},
}
# Table 2, LLaMA-Instruct 3.1 8B: (speedup, tau) on MT-bench and on GSM8K.
TABLE_2 = {
    "EAGLE-2": ((3.16, 4.05), (3.39, 4.24)),
    "+ remove fea con": ((3.82, 5.37), (3.77, 5.22)),
    "+ fused features": ((4.40, 6.13), (4.48, 6.23)),
}
# Table 3, LLaMA-Instruct 3.1 8B in vLLM: throughput over plain decoding, by batch size.
TABLE_3 = {
    "EAGLE": {2: 1.30, 4: 1.25, 8: 1.21, 16: 1.10, 24: 1.03, 32: 0.93, 48: 0.82, 56: 0.71},
    "EAGLE-3": {2: 1.75, 4: 1.68, 8: 1.58, 16: 1.49, 24: 1.42, 32: 1.36, 48: 1.21, 56: 1.01},
}
