"""Why a pair of target and draft accepts few tokens: measurement, usual repairs, verdict."""
