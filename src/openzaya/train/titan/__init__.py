"""torchtitan 0.3.0 trains a ZAYA: `torchrun -m torchtitan.train --module openzaya.train.titan --config zaya …`.

Everything that knows torchtitan is in this folder; it needs `pip install 'openzaya[titan]'`. The recipe says what is
trained, on what and at which rates, as for `openzaya train`; torchtitan's own options say how the run is looked after.
"""
