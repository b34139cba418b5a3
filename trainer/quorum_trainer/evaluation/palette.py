"""Colours of plots: Okabe and Ito's, which colour-blind readers can tell apart."""

BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#777777"
COLOURS = ("black", BLUE, ORANGE, GREEN, PINK, SKY, "#E69F00", "#B8A800")
