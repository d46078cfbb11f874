"""A small GPT trained in a chosen number format: what the training chapter, its recordings and its command run.

text            seeded synthetic text whose entropy is known
recipes         what a format does to the operands of a matrix product, and the three products of a linear layer
model           a byte-level GPT whose linear layers run in a recipe
run             training: curves, held-out loss, where a run diverged; alone or on several ranks
torch_settings  what torch must be told before all recipes train on a GPU
probes          gradients against FP32, captured tensors, clipped and flushed shares, the outlier dial
pairs           runs of the same seeds compared: an interval for their mean difference
amdahl          what a faster product does for a whole step
loss_figure     the curves of a recorded run, drawn
"""
