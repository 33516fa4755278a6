"""A look at the machines before a run: ranks, products, links, disks, clocks. Under `torchrun`, on gloo too."""
