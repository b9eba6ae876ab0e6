"""Settings that make ART's attacks short enough for a test."""

QUICK: dict[str, dict[str, int | float]] = {
    "auto-pgd": {"max_iter": 20},
    "auto-pgd-dlr": {"max_iter": 20},
    "autoattack": {"square_iterations": 20},
    "square": {"max_iter": 100},
    "cw-l2": {"binary_search_steps": 2, "max_iter": 20},
    "cw-linf": {"max_iter": 5},
    "cw-l0": {"binary_search_steps": 2, "max_iter": 10},
    "elasticnet": {"binary_search_steps": 3, "max_iter": 30},
    "hopskipjump": {"max_iter": 3, "max_eval": 100, "init_eval": 20},
    "hopskipjump-linf": {"max_iter": 3, "max_eval": 100, "init_eval": 20},
    "boundary": {"max_iter": 4},
    "signopt": {"max_iter": 2, "num_trial": 40, "k": 5},
    "zoo": {"max_iter": 50},
    "pixel": {"max_iter": 4},
}
