"""What concepts are worth: class transfer between sites, subtype classifiers, effects, few-shot naming.

Everything here stays at the site or runs in a simulation; only the sums of `federated` are meant to leave.
"""
