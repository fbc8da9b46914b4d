"""The tuner: finds the fastest configs on a GPU and writes raw results, which the codegen turns into the table.

Its modules:

    plan    which keys, and the batch each is timed on          lab      checks and times configs on the GPU
    space   the configs worth trying                            measure  cold-cache times by CUDA graphs
    search  which of them to try next                           compile  fills Triton's cache in parallel
    race    the finalists against the default                   worker   processes that may crash
    record  the raw results on disk                             rig      one GPU, with what serves it
    tuner   drives all of these                                 fleet    the same on a Ray cluster

side_by_side times rows in turn, for race and for three commands: agreement (two runs' winners), cross (other keys' rows
at each key: heats says which, crossing runs them), spot_check (keys that were not tuned: spots draws and judges them).
"""

from csgmv.tuning.plan import Keys, Plan, Task
from csgmv.tuning.session import Step, Summary
from csgmv.tuning.tuner import tune

__all__ = ["Keys", "Plan", "Step", "Summary", "Task", "tune"]
