"""The five stages of a run. Imports nothing, for the command line lists them before anything is loaded."""

STAGES = {
    "pretrain": "Train the backbones [squeeze].",
    "measure": "Record the real data's statistics.",
    "synthesis": "Optimise the images [recover].",
    "relabel": "Store the ensemble's soft labels.",
    "evaluation": "Train and test students.",
}
"""What each stage does, in the order in which they run."""
