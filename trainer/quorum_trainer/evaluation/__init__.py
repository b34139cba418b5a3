"""How good an ensemble is on given files: metrics, intervals, report, plots; and the choice of mode and beta."""
